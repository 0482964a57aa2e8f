"""Names of weights in the original Show-o code and in this package. Pure functions."""

import re
from collections.abc import Iterable, Sequence


# (pattern of the original name, our name). The first pattern that matches the whole name decides.
_SHOWO_RULES = (
    (r"showo\.(model\..+|lm_head\..+)", r"\1"),
    (r"mm_projector\.(.+)", r"mm_projector.\1"),
)

# Applied in this order to every name of the image tokenizer.
_MAGVITV2_RULES = (
    (r"^(?:encoder|decoder)\.((?:post_)?quant_conv)", r"\1"),
    (r"down\.(\d+)\.block\.(\d+)", r"down_blocks.\1.resnets.\2"),
    (r"down\.(\d+)\.downsample", r"down_blocks.\1.downsamplers.0"),
    (r"mid\.block_1", "mid_block.resnets.0"),
    (r"mid\.block_2", "mid_block.resnets.1"),
    (r"mid\.attn_1\.norm", "mid_block.attentions.0.group_norm"),
    (r"mid\.attn_1\.proj_out", "mid_block.attentions.0.to_out.0"),
    (r"mid\.attn_1\.([qkv])\b", r"mid_block.attentions.0.to_\1"),
    (r"nin_shortcut", "conv_shortcut"),
    (r"\bnorm_out", "conv_norm_out"),
)

# The inverse rules. `original_magvitv2_names` renumbers the decoder's stages.
_REVERSE_RULES = (
    (r"^quant_conv", "encoder.quant_conv"),
    (r"^post_quant_conv", "decoder.post_quant_conv"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])\b", r"mid.attn_1.\1"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)", r"up_blocks.\1.block.\2"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up_blocks.\1.upsample"),
)

#: Buffers of the original quantizer: the codebook in binary, and powers of two.
MAGVITV2_CONSTANTS = ("quantize.embedding", "quantize.power_vals")

DropRules = Sequence[tuple[str, str]]  # (pattern of the original name, reason for dropping the tensor)

SHOWO_DROPPED: DropRules = (
    (r"showo\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "computed from the config"),
)
MAGVITV2_DROPPED: DropRules = (
    (r"quantize\.(embedding|power_vals)", "constants of the quantizer"),
    (r"loss\..+", "losses of the tokenizer's training"),
)
VQ_DROPPED: DropRules = ((r"loss\..+", "losses of the tokenizer's training"),)
CLIP_DROPPED: DropRules = (
    (r"(text_model|text_projection|visual_projection)\..+|logit_scale", "the text half of CLIP"),
    (r"(vision_model\.)?embeddings\.position_ids", "computed from the config"),
)


def showo_name(original: str) -> str | None:
    """Our name of an original transformer weight; None for any other name."""
    for pattern, ours in _SHOWO_RULES:
        match = re.fullmatch(pattern, original)
        if match:
            return match.expand(ours)
    return None


def magvitv2_name(original: str, stages: int = 5) -> str:
    """
    Our name of an original image tokenizer weight.

    The original numbers the decoder's stages from the largest resolution, diffusers in the order of computation. So the
    new number depends on the number of `stages`.
    """
    name = original
    for pattern, ours in _MAGVITV2_RULES:
        name = re.sub(pattern, ours, name)

    def reverse(match: re.Match) -> str:
        return f"up_blocks.{stages - 1 - int(match[1])}."

    name = re.sub(r"up\.(\d{1,9})\.", reverse, name)
    name = re.sub(r"(up_blocks\.\d+)\.block\.(\d+)", r"\1.resnets.\2", name)
    return re.sub(r"(up_blocks\.\d+)\.upsample", r"\1.upsamplers.0", name)


def vqgan_name(original: str, stages: int = 5) -> str:
    """
    Our name of a weight of taming-transformers' VQGAN. It is named as MAGVIT-v2 is, and has attention in its stages.

    The number of `stages` is needed as in [`magvitv2_name`].
    """
    name = re.sub(r"^quantize\.embedding\.weight$", "quantizer.codebook", magvitv2_name(original, stages))
    name = re.sub(r"down\.(\d+)\.attn\.(\d+)", r"down_blocks.\1.attentions.\2", name)
    name = re.sub(r"(up_blocks\.\d+)\.attn\.(\d+)", r"\1.attentions.\2", name)
    name = re.sub(r"(attentions\.\d+)\.norm\b", r"\1.group_norm", name)
    name = re.sub(r"(attentions\.\d+)\.proj_out", r"\1.to_out.0", name)
    return re.sub(r"(attentions\.\d+)\.([qkv])\b", r"\1.to_\2", name)


def diffusers_vq_name(original: str) -> str:
    """Our name of a weight of diffusers' `VQModel`. Old files have other names in their attention."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    name = re.sub(
        r"(attentions\.\d+)\.(query|key|value|proj_attn)\b", lambda match: f"{match[1]}.{old[match[2]]}", original
    )
    return re.sub(r"^quantize\.embedding\.weight$", "quantizer.codebook", name)


def is_attention_kernel(original: str) -> bool:
    """Whether the original has a 1x1 convolution (out, in, 1, 1) where we have a matrix (out, in)."""
    return bool(re.search(r"attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", original))


def clip_vision_name(original: str) -> str:
    """Our name of a vision tower weight, from a complete CLIP or from the tower alone."""
    return "vision_tower." + original.removeprefix("vision_model.")


def why_dropped(original: str, rules: DropRules) -> str | None:
    """The reason for dropping a tensor; None if it must be converted."""
    return next((why for pattern, why in rules if re.fullmatch(pattern, original)), None)


def original_showo_name(ours: str) -> str:
    """The original name of one of our transformer weights."""
    return ours if ours.startswith("mm_projector.") else f"showo.{ours}"


def original_magvitv2_names(names: Iterable[str], stages: int = 5) -> dict[str, str]:
    """Our names of the image tokenizer's weights to the original names; the inverse of [`magvitv2_name`]."""
    turned = {}
    for ours in names:
        name = ours
        for pattern, original in _REVERSE_RULES:
            name = re.sub(pattern, original, name)
        name = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{stages - 1 - int(match[1])}.", name)
        if magvitv2_name(name, stages) != ours:
            raise KeyError(f"no original name for {ours!r}")
        turned[ours] = name
    return turned
