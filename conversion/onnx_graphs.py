"""The parts of a text-to-image model as ONNX graphs: the transformer, and the image tokenizer's two halves.

Each part is a small module around the model's own layers, traced by `torch.onnx.export`. The graphs use operators of
the ONNX standard alone, so that any runtime can run them, also in a browser.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim
from transformers import DynamicCache

from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.models.modeling_showo_lfq import ShowoLFQTokenizer


#: The oldest operator set that torch writes: what has it runs everywhere.
OPSET = 18

#: A file in protobuf's format ends at 2 GiB; above this the weights go to a file of their own.
MAX_SINGLE_FILE_BYTES = 1_900_000_000


@dataclass
class Graph:
    """
    A module to trace, with what `torch.onnx.export` has to know about it.

    Args:
        module: the module; its forward takes the inputs in the order of `inputs`.
        inputs: an example of each input by name. No axis that may change has the size 0 or 1 here: tracing would take
            such a size for a rule.
        axes: for each input, the names of the axes that may change.
        outputs: the outputs' shapes by name, with names for the axes that may change.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    axes: dict[str, dict[int, str | Dim]]
    outputs: dict[str, tuple[int | str, ...]]


class TransformerStep(nn.Module):
    """
    The transformer, for texts and images alike, behind keys and values of what came before.

    One graph for both holds the weights once, on the disk and in memory. A text has nothing before it, and its keys and
    values are wanted; an image stands behind its text, and its logits are wanted.
    """

    def __init__(self, model: ShowoForCausalLM):
        super().__init__()
        config = model.config
        self.backbone = model.model
        rows = slice(config.image_token_offset, config.image_token_offset + config.codebook_size)
        # A layer of its own: a slice of the whole head would be taken, and turned, again in every step.
        self.head = nn.Linear(config.hidden_size, config.codebook_size, bias=model.lm_head.bias is not None)
        self.head.to(model.lm_head.weight.dtype)
        with torch.no_grad():
            self.head.weight.copy_(model.lm_head.weight[rows])
            if model.lm_head.bias is not None:
                self.head.bias.copy_(model.lm_head.bias[rows])

    def forward(
        self,
        input_ids: torch.LongTensor,
        position_ids: torch.LongTensor,
        attention_mask: torch.BoolTensor,
        past_keys: torch.Tensor,
        past_values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            input_ids, position_ids: (rows, length).
            attention_mask: (rows, length, past + length), True where a position sees another.
            past_keys, past_values: (layers, rows, heads, past, head_dim).

        Returns:
            logits of the image codes (rows, length, codebook_size) in float32; keys and values of the new positions,
            (layers, rows, heads, length, head_dim).
        """
        # Not -inf, also after a score is added: a pad sees nobody, and must not become NaN.
        lowest = torch.finfo(past_keys.dtype).min / 2
        mask = torch.where(attention_mask, 0.0, lowest).to(past_keys.dtype).unsqueeze(1)  # (rows, 1, length, total)
        cache = DynamicCache(list(zip(past_keys.unbind(0), past_values.unbind(0), strict=True)))
        hidden = self.backbone(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        past = past_keys.shape[3]
        keys = torch.stack([layer.keys[:, :, past:] for layer in cache.layers])
        values = torch.stack([layer.values[:, :, past:] for layer in cache.layers])
        return self.head(hidden).float(), keys, values


class ImageEncoder(nn.Module):
    """Pixels (batch, 3, H, W) in [-1, 1] to codes (batch, h, w)."""

    def __init__(self, tokenizer: ShowoLFQTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, pixel_values: torch.Tensor) -> torch.LongTensor:
        return self.tokenizer.encode(pixel_values).image_tokens


class ImageDecoder(nn.Module):
    """Codes (batch, h, w) to pixels (batch, 3, H, W) in [-1, 1], float32."""

    def __init__(self, tokenizer: ShowoLFQTokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        bits = tokenizer.config.codebook_bits
        self.register_buffer("powers", 2 ** torch.arange(bits - 1, -1, -1))

    def forward(self, image_tokens: torch.LongTensor) -> torch.Tensor:
        # `indices_to_codes` shifts bits, for which there is no ONNX operator on signed integers.
        bits = (image_tokens.unsqueeze(-1) // self.powers) % 2  # (batch, h, w, bits)
        codes = (2 * bits - 1).to(self.tokenizer.dtype).movedim(-1, 1)
        return self.tokenizer.decode_quantized(codes).clamp(-1, 1).float()


def transformer_graph(model: ShowoForCausalLM) -> Graph:
    """
    The graph of [`TransformerStep`].

    The model's attention is set to "eager": torch's fused one is written as more operators, not fewer.
    """
    model.set_attn_implementation("eager")
    rows, past, length = 2, 5, 6
    ids = torch.randint(model.config.vocab_size, (rows, length))
    cache = DynamicCache()
    with torch.no_grad():
        model.model(input_ids=ids[:, :past], past_key_values=cache, use_cache=True)
    keys = torch.stack([layer.keys for layer in cache.layers])  # (layers, rows, heads, past, head_dim)
    layers, _, heads, _, head_dim = keys.shape
    axes = {0: "rows", 1: "length"}
    past_axes = {1: "rows", 3: "past"}
    new = (layers, "rows", heads, "length", head_dim)
    return Graph(
        module=TransformerStep(model),
        inputs={
            "input_ids": ids,
            "position_ids": torch.arange(length).repeat(rows, 1),
            "attention_mask": torch.ones(rows, length, past + length).tril(past).bool(),
            "past_keys": keys,
            "past_values": keys.clone(),
        },
        axes={
            "input_ids": axes,
            "position_ids": axes,
            "attention_mask": axes | {2: "total"},
            "past_keys": past_axes,
            "past_values": past_axes,
        },
        outputs={"logits": ("rows", "length", model.config.codebook_size), "keys": new, "values": new},
    )


def image_encoder_graph(tokenizer: ShowoLFQTokenizer) -> Graph:
    """The graph of [`ImageEncoder`], for any multiple of the downsampling in height and width."""
    factor = tokenizer.config.downsampling
    pixels = torch.rand(2, tokenizer.config.in_channels, 3 * factor, 5 * factor) * 2 - 1
    axes = {0: Dim("batch"), 2: factor * Dim("height"), 3: factor * Dim("width")}
    return Graph(
        module=ImageEncoder(tokenizer),
        inputs={"pixel_values": pixels},
        axes={"pixel_values": axes},
        outputs={"image_tokens": ("batch", "height", "width")},
    )


def image_decoder_graph(tokenizer: ShowoLFQTokenizer) -> Graph:
    """The graph of [`ImageDecoder`], for any grid."""
    config = tokenizer.config
    factor = config.downsampling
    return Graph(
        module=ImageDecoder(tokenizer),
        inputs={"image_tokens": torch.randint(config.codebook_size, (2, 3, 5))},
        axes={"image_tokens": {0: "batch", 1: "height", 2: "width"}},
        outputs={"pixel_values": ("batch", config.in_channels, f"{factor}*height", f"{factor}*width")},
    )


def write_graph(graph: Graph, path: Path, external_data: bool | None = None):
    """
    Trace `graph` and write it to `path`.

    `external_data` puts the weights into `path` + ".data" beside it; by default only where one file cannot hold them.
    """
    import onnx_ir

    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            dynamo=True,
            dynamic_shapes=tuple(graph.axes.values()),
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    for output, shape in zip(program.model.graph.outputs, graph.outputs.values(), strict=True):
        output.shape = onnx_ir.Shape(shape)  # as traced, a name may be a formula of other names
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the source each came from: larger than a small model, and full of paths
    program.save(path, external_data=too_large(graph.module) if external_data is None else external_data)


def too_large(module: nn.Module) -> bool:
    """Whether the weights of `module` need a file of their own."""
    size = sum(weight.numel() * weight.element_size() for weight in module.state_dict().values())
    return size > MAX_SINGLE_FILE_BYTES


def quantize_transformer(source: Path, target: Path):
    """
    Write the transformer's graph `source` to `target` with weights of 8 bits, the embeddings' too.

    Matrix products are computed with integers; the scale of their inputs is found anew each time ("dynamic").
    """
    from onnxruntime.quantization import QuantType

    # A scale for each output. 7 of the 8 bits: processors without VNNI add products in 16 bits, which overflow else.
    quantize(source, target, ["MatMul", "Gather"], QuantType.QInt8, per_channel=True, reduce_range=True)


def quantize_image_tokenizer(source: Path, target: Path):
    """The same for the encoder's or the decoder's graph, whose weights are mostly those of convolutions."""
    from onnxruntime.quantization import QuantType

    # ONNX Runtime convolves unsigned weights alone on a CPU, with one scale for all.
    quantize(source, target, ["MatMul", "Conv"], QuantType.QUInt8)


def quantize(source: Path, target: Path, operators: list[str], weight_type, **options):
    """Call ONNX Runtime's `quantize_dynamic`; a graph with its weights in a file of their own gives such a one."""
    from onnxruntime.quantization import quantize_dynamic

    external_data = source.with_name(source.name + ".data").exists()
    with quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=operators,
            weight_type=weight_type,
            use_external_data_format=external_data,
            **options,
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the tools' remarks on their own inner parts, about which nobody can do anything, from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
