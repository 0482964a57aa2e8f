"""The parts of a text-to-image model as ONNX graphs: the transformer, and the image tokenizer's two halves.

Each part is a small module around the model's own layers, exported by `torch.onnx.export`. The graphs only use operators
of the ONNX standard, so that every runtime supports them, also in a browser.
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

from showo_hf.models.image_tokenizer import ShowoImageTokenizer
from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.models.modeling_showo_lfq import ShowoLFQTokenizer


#: The oldest operator set that torch writes, for the largest number of runtimes.
OPSET = 18

#: Above this size the weights go to a separate file, because a protobuf file is limited to 2 GiB.
MAX_SINGLE_FILE_BYTES = 1_900_000_000


@dataclass
class Graph:
    """
    A module to export, with the arguments of `torch.onnx.export`.

    Args:
        module: the module; its forward takes the inputs in the order of `inputs`.
        inputs: an example of each input by name. A dynamic axis must not have size 0 or 1 here, because the exporter
            would treat such a size as constant.
        axes: for each input, the names of the dynamic axes.
        outputs: the shape of each output by name, with names for the dynamic axes.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    axes: dict[str, dict[int, str | Dim]]
    outputs: dict[str, tuple[int | str, ...]]


class TransformerStep(nn.Module):
    """
    The transformer with a key-value cache as input, for prompts and for images.

    One graph for both has the weights once, on disk and in memory. A prompt has an empty cache, and the caller uses its
    keys and values. An image comes after the cache of its prompt, and the caller uses its logits.
    """

    def __init__(self, model: ShowoForCausalLM):
        super().__init__()
        config = model.config
        self.backbone = model.model
        rows = slice(config.image_token_offset, config.image_token_offset + config.codebook_size)
        # A separate layer, because the graph would slice and transpose the whole head in every step.
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
            attention_mask: (rows, length, past + length), True where a position attends to another.
            past_keys, past_values: (layers, rows, heads, past, head_dim).

        Returns:
            logits of the image tokens (rows, length, codebook_size) in float32, and keys and values of the new
            positions (layers, rows, heads, length, head_dim).
        """
        # Finite, also with a score added: a pad attends to nothing, and -inf would give NaN.
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
    """Pixels (batch, 3, H, W) in [-1, 1] to image tokens (batch, h, w)."""

    def __init__(self, tokenizer: ShowoImageTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, pixel_values: torch.Tensor) -> torch.LongTensor:
        return self.tokenizer.encode(pixel_values).image_tokens


class ImageDecoder(nn.Module):
    """Image tokens (batch, h, w) to pixels (batch, 3, H, W) in [-1, 1], float32."""

    def __init__(self, tokenizer: ShowoImageTokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        is_lfq = isinstance(tokenizer, ShowoLFQTokenizer)
        self.register_buffer(
            "powers", 2 ** torch.arange(tokenizer.config.codebook_bits - 1, -1, -1) if is_lfq else None
        )

    def forward(self, image_tokens: torch.LongTensor) -> torch.Tensor:
        if self.powers is None:
            codes = self.tokenizer.codes_of(image_tokens)
        else:  # `indices_to_codes` shifts bits, and ONNX has no such operator for signed integers
            bits = (image_tokens.unsqueeze(-1) // self.powers) % 2  # (batch, h, w, bits)
            codes = (2 * bits - 1).to(self.tokenizer.dtype).movedim(-1, 1)
        return self.tokenizer.decode_quantized(codes).clamp(-1, 1).float()


def transformer_graph(model: ShowoForCausalLM) -> Graph:
    """
    The graph of [`TransformerStep`].

    Sets the model's attention to "eager", because torch exports its fused attention as more operators.
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


def image_encoder_graph(tokenizer: ShowoImageTokenizer) -> Graph:
    """The graph of [`ImageEncoder`]. Height and width may be any multiple of the downsampling."""
    factor = tokenizer.config.downsampling
    pixels = torch.rand(2, tokenizer.config.in_channels, 3 * factor, 5 * factor) * 2 - 1
    axes = {0: Dim("batch"), 2: factor * Dim("height"), 3: factor * Dim("width")}
    return Graph(
        module=ImageEncoder(tokenizer),
        inputs={"pixel_values": pixels},
        axes={"pixel_values": axes},
        outputs={"image_tokens": ("batch", "height", "width")},
    )


def image_decoder_graph(tokenizer: ShowoImageTokenizer) -> Graph:
    """The graph of [`ImageDecoder`]. The grid may have any size."""
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
    Export `graph` to `path`.

    `external_data` writes the weights to `path` + ".data"; by default only if they do not fit into one file.
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
        output.shape = onnx_ir.Shape(shape)  # the exporter may name an axis by a formula
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # source locations, with local paths and many bytes
    program.save(path, external_data=too_large(graph.module) if external_data is None else external_data)


def too_large(module: nn.Module) -> bool:
    """Whether the weights of `module` need a separate file."""
    size = sum(weight.numel() * weight.element_size() for weight in module.state_dict().values())
    return size > MAX_SINGLE_FILE_BYTES


def quantize_transformer(source: Path, target: Path):
    """
    Write the transformer's graph `source` to `target` with weights and embeddings of 8 bits.

    Matrix products use integers. The scale of their inputs is computed at run time ("dynamic quantization").
    """
    from onnxruntime.quantization import QuantType

    # One scale for each output channel. 7 of the 8 bits, because processors without VNNI would overflow 16-bit sums.
    quantize(source, target, ["MatMul", "Gather"], QuantType.QInt8, per_channel=True, reduce_range=True)


def quantize_image_tokenizer(source: Path, target: Path):
    """Write the encoder's or the decoder's graph with weights of 8 bits; most of them belong to convolutions."""
    from onnxruntime.quantization import QuantType

    # On a CPU, ONNX Runtime only supports convolutions of unsigned weights with one scale.
    quantize(source, target, ["MatMul", "Conv"], QuantType.QUInt8)


def quantize(source: Path, target: Path, operators: list[str], weight_type, **options):
    """Call ONNX Runtime's `quantize_dynamic`. The output has a separate file of weights if the source has one."""
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
    """Silence the exporters' warnings about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
