"""The original models as plain functions of the original weights, as a reference for `--verify`.

Nothing here uses our modules or our names of weights, so that a mistake in these is found.
"""

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F
from transformers import PhiConfig, PhiForCausalLM

from .checkpoint import Checkpoint


Weights = Callable[[str], torch.Tensor]

GROUPS = 32  # in the group norms of MAGVIT-v2 and VQGAN
EPS = 1e-6


def float_weights(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Weights:
    """A function from a name to its tensor in float32, rounded to `dtype`, the dtype of the converted weights."""
    return lambda name: checkpoint.tensor(name).to(dtype).float() if dtype else checkpoint.tensor(name).float()


@torch.no_grad()
def plain_showo_logits(
    checkpoint: Checkpoint,
    text_config: PhiConfig,
    input_ids: torch.Tensor,
    seen: torch.Tensor,
    dtype: torch.dtype | None = None,
):
    """
    Logits (batch, length, vocab_size) of transformers' own Phi with the original weights.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, length)`).
        seen (`torch.BoolTensor` of shape `(batch, 1, length, length)`): which positions see which.
    """
    with torch.device("meta"):
        model = PhiForCausalLM(PhiConfig.from_dict({**text_config.to_dict(), "tie_word_embeddings": False}))
    prefix = "showo."
    state = {
        name.removeprefix(prefix): name for name in checkpoint if name.startswith(prefix) and "inv_freq" not in name
    }
    read = float_weights(checkpoint, dtype)
    model.load_state_dict({ours: read(name) for ours, name in state.items()}, assign=True)
    rotary = model.model.rotary_emb  # its frequencies are not in the state dict
    model.model.rotary_emb = type(rotary)(model.config)
    model.set_attn_implementation("eager")
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return model.eval()(input_ids=input_ids, attention_mask=mask, use_cache=False).logits


def plain_projector(read: Weights, features: torch.Tensor) -> torch.Tensor:
    """The original's projector, linear, GELU, linear, on CLIP features (..., width)."""
    hidden = F.gelu(F.linear(features, read("mm_projector.0.weight"), read("mm_projector.0.bias")))
    return F.linear(hidden, read("mm_projector.2.weight"), read("mm_projector.2.bias"))


@torch.no_grad()
def plain_encode(checkpoint: Checkpoint, pixels: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The latents of MAGVIT-v2 or VQGAN (batch, channels, h, w) before quantization, from pixels (batch, 3, H, W)."""
    read = float_weights(checkpoint, dtype)
    x = conv(read, "encoder.conv_in", pixels, padding=1)
    for stage in numbered(checkpoint, "encoder.down"):
        x = blocks(checkpoint, read, stage, x)
        if f"{stage}.downsample.conv.weight" in checkpoint:
            x = conv(read, f"{stage}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    x = middle(checkpoint, read, "encoder.mid", x)
    x = conv(read, "encoder.conv_out", swish(norm(read, "encoder.norm_out", x)), padding=1)
    return conv(read, first_of(checkpoint, "encoder.quant_conv", "quant_conv"), x)


@torch.no_grad()
def plain_decode(checkpoint: Checkpoint, codes: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The pixels of MAGVIT-v2 or VQGAN (batch, 3, H, W) from quantized latents (batch, channels, h, w)."""
    read = float_weights(checkpoint, dtype)
    post_quant_conv = first_of(checkpoint, "decoder.post_quant_conv", "post_quant_conv")
    x = conv(read, "decoder.conv_in", conv(read, post_quant_conv, codes), padding=1)
    x = middle(checkpoint, read, "decoder.mid", x)
    for stage in reversed(numbered(checkpoint, "decoder.up")):
        x = blocks(checkpoint, read, stage, x)
        if f"{stage}.upsample.conv.weight" in checkpoint:
            x = conv(read, f"{stage}.upsample.conv", F.interpolate(x, scale_factor=2.0), padding=1)
    return conv(read, "decoder.conv_out", swish(norm(read, "decoder.norm_out", x)), padding=1)


def numbered(names: Mapping | Checkpoint, stem: str) -> list[str]:
    """`stem.0`, `stem.1` and so on, if there are weights below them."""
    found = {int(name[len(stem) + 1 :].split(".")[0]) for name in names if name.startswith(stem + ".")}
    return [f"{stem}.{number}" for number in sorted(found)]


def conv(read: Weights, name: str, x: torch.Tensor, stride: int = 1, padding: int = 0) -> torch.Tensor:
    return F.conv2d(x, read(f"{name}.weight"), read(f"{name}.bias"), stride=stride, padding=padding)


def norm(read: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, GROUPS, read(f"{name}.weight"), read(f"{name}.bias"), EPS)


def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def residual(checkpoint: Checkpoint, read: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Twice norm, swish and convolution, added to the input."""
    h = conv(read, f"{name}.conv1", swish(norm(read, f"{name}.norm1", x)), padding=1)
    h = conv(read, f"{name}.conv2", swish(norm(read, f"{name}.norm2", h)), padding=1)
    shortcut = f"{name}.nin_shortcut"
    return h + (conv(read, shortcut, x) if f"{shortcut}.weight" in checkpoint else x)


def blocks(checkpoint: Checkpoint, read: Weights, stage: str, x: torch.Tensor) -> torch.Tensor:
    """The residual blocks of a stage. In some stages of a VQGAN, attention follows each of them."""
    for number, block in enumerate(numbered(checkpoint, f"{stage}.block")):
        x = residual(checkpoint, read, block, x)
        if f"{stage}.attn.{number}.q.weight" in checkpoint:
            x = attention(read, f"{stage}.attn.{number}", x)
    return x


def middle(checkpoint: Checkpoint, read: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Residual block, attention over all positions, residual block."""
    x = residual(checkpoint, read, f"{name}.block_1", x)
    if f"{name}.attn_1.q.weight" in checkpoint:
        x = attention(read, f"{name}.attn_1", x)
    return residual(checkpoint, read, f"{name}.block_2", x)


def attention(read: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Attention over all positions, added to the input."""
    h = norm(read, f"{name}.norm", x)
    q, k, v = (conv(read, f"{name}.{part}", h).flatten(2) for part in "qkv")  # (batch, channels, positions)
    weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1)
    h = (v @ weights.transpose(1, 2)).view_as(x)
    return x + conv(read, f"{name}.proj_out", h)


def first_of(checkpoint: Checkpoint, *names: str) -> str:
    """The first of these layers that the checkpoint has: MAGVIT-v2 and VQGAN keep two layers in different places."""
    return next(name for name in names if f"{name}.weight" in checkpoint)
