"""Whether a converted model computes what the source's weights compute."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from showo_hf.modeling_showo import ShowoForCausalLM
from showo_hf.modeling_showo_lfq import ShowoLFQTokenizer, indices_to_codes

from .checkpoint import Checkpoint
from .errors import ConversionError
from .plain_reading import float_weights, plain_decode, plain_encode, plain_projector, plain_showo_logits


# Allowed difference, as a share of the largest number, by the dtype of the converted weights. The first is rounding
# in sums of another order, the others that of the weights themselves.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
PICTURE_TOKENS = 16
TEXT_TOKENS = 8
PIXELS = 64


@dataclass
class Verification:
    """Largest absolute difference, and largest absolute number, of each output that was compared."""

    differences: dict[str, tuple[float, float]] = field(default_factory=dict)

    def compare(self, what: str, found: torch.Tensor, wanted: torch.Tensor):
        """Note how far two tensors of one shape are apart."""
        self.differences[what] = ((found - wanted).abs().max().item(), wanted.abs().max().item())

    def check(self, dtype: torch.dtype):
        """Raise `ConversionError` if an output is further off than rounding explains."""
        tolerance = TOLERANCES.get(dtype, TOLERANCES[torch.float32])
        wrong = [what for what, (difference, size) in self.differences.items() if not difference <= tolerance * size]
        if wrong:
            raise ConversionError(f"the converted model computes something else: {self}; wrong: {', '.join(wrong)}")

    def __str__(self) -> str:
        parts = (f"{what} {gap:.2e} (of {size:.3g})" for what, (gap, size) in self.differences.items())
        return "largest differences from the source: " + ", ".join(parts)


def verify_showo(folder: Path, showo: Checkpoint, image_tokenizer: Checkpoint) -> Verification:
    """Compare the pipeline in `folder` with the source on a short sequence and a small picture, in float32."""
    model = ShowoForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    stored = ShowoForCausalLM.config_class.from_pretrained(folder / "model").dtype
    config = model.config
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(config.pad_token_id, (TEXT_TOKENS,), generator=generator)
    codes = torch.randint(config.codebook_size, (PICTURE_TOKENS,), generator=generator) + config.image_token_offset
    ids = torch.tensor([config.t2i_token_id, *text, config.soi_token_id, *codes, config.eoi_token_id])
    is_picture = torch.arange(len(ids)) > TEXT_TOKENS  # soi, codes, eoi
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril() | (is_picture[:, None] & is_picture[None])
    result = Verification()
    with torch.no_grad():
        found = model(ids[None]).logits
        result.compare("logits", found, plain_showo_logits(showo, config.text_config, ids[None], seen[None, None]))
        if model.mm_projector is not None:
            features = torch.randn(4, config.image_feature_size, generator=generator)
            wanted = plain_projector(float_weights(showo), features)
            result.compare("projected features", model.mm_projector(features), wanted)
    compare_tokenizer(result, model.image_tokenizer, image_tokenizer)
    result.check(stored)
    return result


def verify_magvitv2(folder: Path, source: Checkpoint) -> Verification:
    """Compare the picture tokenizer in `folder` with the source on a small picture, in float32."""
    model = ShowoLFQTokenizer.from_pretrained(folder, dtype=torch.float32).eval()
    result = Verification()
    compare_tokenizer(result, model, source)
    result.check(ShowoLFQTokenizer.config_class.from_pretrained(folder).dtype)
    return result


@torch.no_grad()
def compare_tokenizer(result: Verification, model: ShowoLFQTokenizer, source: Checkpoint):
    """Note the differences of latents and of decoded pixels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, model.config.in_channels, PIXELS, PIXELS, generator=generator) * 2 - 1
    encoded = model.encode(pixels)
    result.compare("latents", encoded.latents, plain_encode(source, pixels))
    codes = indices_to_codes(encoded.image_tokens, model.config.codebook_bits).movedim(-1, 1)
    result.compare("pixels", model.decode_quantized(codes), plain_decode(source, codes))
