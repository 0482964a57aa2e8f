"""Names of weights: the original Show-o code's on one side, this package's on the other. Pure functions."""

import re


# (pattern of the original name, our name); the first that matches the whole name holds.
_SHOWO_RULES = (
    (r"showo\.(model\..+|lm_head\..+)", r"\1"),
    (r"mm_projector\.(.+)", r"mm_projector.\1"),
)

# Applied one after the other to every name of the picture tokenizer.
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

#: Constants of the original quantizer: the codes in binary, and powers of two.
MAGVITV2_CONSTANTS = ("quantize.embedding", "quantize.power_vals")


def showo_name(original: str) -> str | None:
    """Our name of an original transformer weight; None if there is no such weight."""
    for pattern, ours in _SHOWO_RULES:
        match = re.fullmatch(pattern, original)
        if match:
            return match.expand(ours)
    return None


def magvitv2_name(original: str, stages: int = 5) -> str:
    """
    Our name of an original picture tokenizer's weight.

    The original numbers the decoder's stages from full size down, diffusers in the order of the computation; so
    `stages`, the number of them, is needed.
    """
    name = original
    for pattern, ours in _MAGVITV2_RULES:
        name = re.sub(pattern, ours, name)

    def reverse(match: re.Match) -> str:
        return f"up_blocks.{stages - 1 - int(match[1])}."

    name = re.sub(r"up\.(\d+)\.", reverse, name)
    name = re.sub(r"(up_blocks\.\d+)\.block\.(\d+)", r"\1.resnets.\2", name)
    return re.sub(r"(up_blocks\.\d+)\.upsample", r"\1.upsamplers.0", name)


def is_attention_kernel(original: str) -> bool:
    """Whether the original stores the weight as a 1x1 convolution (out, in, 1, 1) where ours is a matrix (out, in)."""
    return bool(re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", original))
