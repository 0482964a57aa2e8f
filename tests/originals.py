"""Checkpoints in the original's format: small or with recorded weights, in every file format in use."""

import json
from pathlib import Path

import torch
from golden.seeded_weights import seeded_tensor
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from showo_hf.conversion.export_showo import quantizer_constants


GOLDEN = Path(__file__).parent / "golden"
TEXT_TOKENIZER = GOLDEN / "phi-1_5-tokenizer"
FORMATS = ("safetensors", "bin", "sharded safetensors", "sharded bin", "sharded safetensors without index", "ddp bin")

Weights = dict[str, torch.Tensor]


def manifest(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}_manifest.json").read_text())


def recorded_showo(kind: str = "showo") -> Weights:
    """The weights that the recorded numbers belong to. `kind` is "showo" or "showo_clip"."""
    return {name: seeded_tensor(name, tuple(shape)) for name, shape in manifest(kind).items()}


def recorded_magvitv2() -> Weights:
    constants = quantizer_constants(13)
    return {
        name: constants[name] if name in constants else seeded_tensor(name, tuple(shape))
        for name, (shape, _) in manifest("magvitv2").items()
    }


def small_magvitv2(channels=(32, 32), bits=4) -> Weights:
    """An image tokenizer with few layers and 2 ** (len(channels) - 1) pixels per token and side."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name, out, inside, size=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inside, size, size), (out,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def block(name, inside, out):
        norm(f"{name}.norm1", inside), conv(f"{name}.conv1", out, inside)
        norm(f"{name}.norm2", out), conv(f"{name}.conv2", out, out)
        if inside != out:
            conv(f"{name}.nin_shortcut", out, inside, 1)

    def middle(name, width):
        block(f"{name}.block_1", width, width), block(f"{name}.block_2", width, width)
        norm(f"{name}.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", width, width, 1)

    last = len(channels) - 1
    conv("encoder.conv_in", channels[0], 3)
    for i, width in enumerate(channels):
        block(f"encoder.down.{i}.block.0", channels[max(0, i - 1)], width)
        if i < last:
            conv(f"encoder.down.{i}.downsample.conv", width, width)
    middle("encoder.mid", channels[-1])
    norm("encoder.norm_out", channels[-1]), conv("encoder.conv_out", bits, channels[-1])
    conv("encoder.quant_conv", bits, bits, 1), conv("decoder.post_quant_conv", bits, bits, 1)
    conv("decoder.conv_in", channels[-1], bits)
    middle("decoder.mid", channels[-1])
    for i in range(last, -1, -1):
        block(f"decoder.up.{i}.block.0", channels[min(last, i + 1)], channels[i])
        if i > 0:
            conv(f"decoder.up.{i}.upsample.conv", channels[i], channels[i])
    norm("decoder.norm_out", channels[0]), conv("decoder.conv_out", 3, channels[0])
    return {name: seeded_tensor(name, shape) for name, shape in shapes.items()} | quantizer_constants(bits)


def small_showo(
    layers=1, heads=2, head_dim=4, intermediate=12, codes=16, feature_size=None, text_ids=50295
) -> tuple[Weights, dict]:
    """A transformer with few channels, and its config.json. The text ids are those of phi-1.5's tokenizer."""
    width, vocab = heads * head_dim, text_ids + 10 + codes + 1
    shapes: dict[str, tuple[int, ...]] = {"showo.model.embed_tokens.weight": (vocab, width)}

    def linear(name, out, inside):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inside), (out,)

    for i in range(layers):
        layer = f"showo.model.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "dense"):
            linear(f"{layer}.self_attn.{part}", width, width)
        for part, size in (
            ("self_attn.q_layernorm", head_dim),
            ("self_attn.k_layernorm", head_dim),
            ("input_layernorm", width),
        ):
            shapes[f"{layer}.{part}.weight"] = shapes[f"{layer}.{part}.bias"] = (size,)
        linear(f"{layer}.mlp.fc1", intermediate, width), linear(f"{layer}.mlp.fc2", width, intermediate)
    shapes["showo.model.final_layernorm.weight"] = shapes["showo.model.final_layernorm.bias"] = (width,)
    linear("showo.lm_head", vocab, width)
    if feature_size is not None:
        linear("mm_projector.0", width, feature_size), linear("mm_projector.2", width, width)
    config = {
        "_class_name": "Showo",
        "_version": "0.0.1",
        "w_clip_vit": feature_size is not None,
        "vocab_size": vocab,
        "llm_vocab_size": text_ids,
        "llm_model_path": "microsoft/phi-1_5",
        "codebook_size": codes,
        "num_vq_tokens": 4,
        "load_from_showo": True,
    }
    return {name: seeded_tensor(name, shape) for name, shape in shapes.items()}, config


def write_original(folder: Path, weights: Weights, config: dict | None, form: str = "safetensors") -> Path:
    """Write a checkpoint in one of `FORMATS` and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if form == "ddp bin":
        folder = folder / "unwrapped_model"
        folder.mkdir()
        weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    ending = ".bin" if "bin" in form else ".safetensors"
    save = torch.save if ending == ".bin" else save_file
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    if "sharded" not in form:
        save(weights, folder / f"pytorch_model{ending}")
        return folder.parent if form == "ddp bin" else folder
    size = sum(tensor.numel() * tensor.itemsize for tensor in weights.values()) // 3 + 1
    split = split_torch_state_dict_into_shards(
        weights, max_shard_size=size, filename_pattern="pytorch_model{suffix}" + ending
    )
    for name, tensors in split.filename_to_tensors.items():
        save({tensor: weights[tensor] for tensor in tensors}, folder / name)
    if "without index" not in form:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"pytorch_model{ending}.index.json").write_text(json.dumps(index))
    return folder
