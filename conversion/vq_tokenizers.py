"""Image tokenizers with a codebook of vectors, as other code saves them: their config and their weights.

There are two sources: a folder of diffusers' `VQModel` (Kandinsky's MoVQ, aMUSEd's, Lumina's), and a VQGAN of
taming-transformers (https://github.com/CompVis/taming-transformers), whose weights have the layout of its
`vqgan_imagenet_f16_16384`.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import torch

from showo_hf.models.configuration_showo_vq import ShowoVQTokenizerConfig
from showo_hf.utils.messages import examples
from showo_hf.utils.validation import shown

from .architectures import Shapes, count_stages, read_size, shape_of, without_paths
from .checkpoint import Checkpoint
from .errors import ConversionError
from .held_tensors import HeldTensors
from .plan import ConversionPlan
from .weight_names import VQ_DROPPED, diffusers_vq_name, is_attention_kernel, vqgan_name


DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
#: The defaults of diffusers' `VQModel` that differ from ours, or that its config need not name.
VQMODEL_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 3,
    "num_vq_embeddings": 256,
    "norm_num_groups": 32,
    "vq_embed_dim": None,
    "norm_type": "group",
    "mid_block_add_attention": True,
}


# Recognition


def is_diffusers(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is a `VQModel` of diffusers."""
    return checkpoint.config.get("_class_name") == "VQModel"


def is_vq(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds an image tokenizer with a codebook of vectors. MAGVIT-v2's codebook has another name."""
    return is_diffusers(checkpoint) or "quantize.embedding.weight" in checkpoint or is_gumbel(checkpoint)


def is_gumbel(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is taming's `GumbelVQ`, which draws its codes from logits."""
    return "quantize.proj.weight" in checkpoint


# Configs


def infer_vq_config(checkpoint: Checkpoint, sample_size: int = 256) -> ShowoVQTokenizerConfig:
    """
    The configuration of a checkpoint: from its config if it is diffusers', from the shapes of its weights otherwise.

    Args:
        sample_size: height and width of the training images, in pixels.

    Raises:
        ConversionError: if the model is of another kind, or if a weight is missing that gives a size.
    """
    if is_gumbel(checkpoint):
        raise ConversionError("a VQGAN with a Gumbel quantizer cannot be converted: its codes are not nearest entries")
    options = diffusers_options(checkpoint.config) if is_diffusers(checkpoint) else vqgan_options(checkpoint)
    try:
        return ShowoVQTokenizerConfig(
            sample_size=sample_size, original_config=json.dumps(without_paths(checkpoint.config)), **options
        )
    except (TypeError, ValueError) as error:
        raise ConversionError(f"the image tokenizer cannot be converted: {error}") from error


def diffusers_options(found: dict[str, Any]) -> dict[str, Any]:
    """The arguments of our config for the config of a `VQModel`. `ConversionError` for values of another type."""
    config = VQMODEL_DEFAULTS | {name: value for name, value in found.items() if name in VQMODEL_DEFAULTS}
    for name, default in VQMODEL_DEFAULTS.items():
        if type(default) is int or (name == "vq_embed_dim" and config[name] is not None):
            read_size(config, name, default)
        if isinstance(default, list) and not isinstance(config[name], list):
            raise ConversionError(f"`{name}` in config.json must be a list, got {shown(config[name])}")
    if config["in_channels"] != config["out_channels"]:
        raise ConversionError(
            f"`out_channels` ({config['out_channels']}) must equal `in_channels` ({config['in_channels']})"
        )
    attention = {}
    for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        unknown = sorted({str(kind) for kind in config[name]} - set(known))
        if unknown:
            raise ConversionError(f"`{name}` must be of {', '.join(known)}, got {examples(unknown)}")
        attention[name] = [known[kind] for kind in config[name]]
    stages, layers = len(config["block_out_channels"]), config["layers_per_block"]
    return {
        "in_channels": config["in_channels"],
        "codebook_size": config["num_vq_embeddings"],
        "codebook_dim": config["vq_embed_dim"] or config["latent_channels"],
        "latent_channels": config["latent_channels"],
        "encoder_block_out_channels": config["block_out_channels"],
        "decoder_block_out_channels": config["block_out_channels"],
        "encoder_layers_per_block": [layers] * stages,
        "decoder_layers_per_block": [layers + 1] * stages,
        "encoder_block_attention": attention["down_block_types"],
        # diffusers lists the decoder's blocks from the smallest stage up.
        "decoder_block_attention": attention["up_block_types"][::-1],
        "norm_num_groups": config["norm_num_groups"],
        "norm_type": config["norm_type"],
        "act_fn": config["act_fn"],
        "mid_block_attention": config["mid_block_add_attention"],
    }


def vqgan_options(checkpoint: Checkpoint) -> dict[str, Any]:
    """The arguments of our config for the weights of a VQGAN."""
    shapes: Shapes = {name: checkpoint.shape(name) for name in checkpoint}
    codebook_size, codebook_dim = shape_of(shapes, "quantize.embedding.weight", 2)
    (latent_channels,) = shape_of(shapes, "encoder.conv_out.weight", 4, size=1)
    _, in_channels = shape_of(shapes, "encoder.conv_in.weight", 4, size=2)
    sizes: dict[str, Any] = {}
    for part, stage in (("encoder", "down"), ("decoder", "up")):
        stages = count_stages(shapes, rf"{part}\.{stage}\.(\d+)\.")
        if not stages:
            raise ConversionError(f"the weights have no `{part}.{stage}.0`, so this is not a VQGAN")
        names = [f"{part}.{stage}.{i}" for i in range(stages)]
        sizes[f"{part}_block_out_channels"] = [shape_of(shapes, f"{n}.block.0.conv1.weight", 4)[0] for n in names]
        sizes[f"{part}_layers_per_block"] = [count_stages(shapes, re.escape(n) + r"\.block\.(\d+)\.") for n in names]
        sizes[f"{part}_block_attention"] = [f"{n}.attn.0.q.weight" in shapes for n in names]
    return {
        "in_channels": in_channels,
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "latent_channels": latent_channels,
        "mid_block_attention": "encoder.mid.attn_1.q.weight" in shapes,
        **sizes,
    }


# Weights


class Constants(HeldTensors, Checkpoint):
    """Tensors of our model that a source does not have."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors
        self.config = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors


def add_vq(plan: ConversionPlan, checkpoint: Checkpoint, config: ShowoVQTokenizerConfig, prefix: str = ""):
    """Add each tensor of a `VQModel` or a VQGAN to a plan. The running usage of the codes starts anew."""
    if is_diffusers(checkpoint):
        plan.add(checkpoint, diffusers_vq_name, VQ_DROPPED, prefix)
    else:
        stages = len(config.decoder_block_out_channels)
        plan.add(
            checkpoint,
            lambda name: vqgan_name(name, stages),
            VQ_DROPPED,
            prefix,
            is_kernel=is_attention_kernel,
        )
    codebook = "quantize.embedding.weight"
    shape_of({name: checkpoint.shape(name) for name in checkpoint}, codebook, 2)  # raises if there is none
    dtype = checkpoint.dtype(codebook)
    usage = {"quantizer.code_usage": torch.ones(config.codebook_size, dtype=dtype)}
    plan.add(Constants(usage), lambda name: name, prefix=prefix)
