"""Compare the outputs of a converted model with outputs computed from the source's weights."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import VQModel
from transformers import AutoModel, CLIPVisionModel

from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.image_tokenizer import ShowoImageTokenizer
from showo_hf.models.modeling_showo import ShowoForCausalLM

from .checkpoint import Checkpoint
from .errors import ConversionError
from .plain_reading import float_weights, plain_decode, plain_encode, plain_projector, plain_showo_logits
from .vq_tokenizers import is_diffusers


# The allowed difference, relative to the largest number. Both sides compute in float32 with the same weights, so only
# the order of sums differs.
TOLERANCE = 1e-3
IMAGE_TOKENS = 16
TEXT_TOKENS = 8
PIXELS = 64


@dataclass
class Verification:
    """The largest absolute difference and the largest absolute number of each compared output."""

    differences: dict[str, tuple[float, float]] = field(default_factory=dict)

    def compare(self, name: str, found: torch.Tensor, expected: torch.Tensor):
        """Record the difference between two tensors of one shape."""
        self.differences[name] = ((found - expected).abs().max().item(), expected.abs().max().item())

    def check(self):
        """Raise `ConversionError` if a difference is larger than rounding explains."""
        wrong = [name for name, (difference, size) in self.differences.items() if not difference <= TOLERANCE * size]
        if wrong:
            raise ConversionError(f"the converted model differs from the source: {self}; wrong: {', '.join(wrong)}")

    def __str__(self) -> str:
        parts = (f"{name} {difference:.2e} (of {size:.3g})" for name, (difference, size) in self.differences.items())
        return "largest differences from the source: " + ", ".join(parts)


def verify_showo(
    folder: Path,
    showo: Checkpoint,
    image_tokenizer: Checkpoint,
    clip: Checkpoint | None = None,
    dtype: torch.dtype | None = None,
) -> Verification:
    """
    Compare the pipeline in `folder`, saved in `dtype`, with its sources on a short sequence and a small image.

    Both are loaded in float32.

    Raises:
        ConversionError: if their outputs differ.
    """
    model = ShowoForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(config.pad_token_id, (TEXT_TOKENS,), generator=generator)
    image = torch.randint(config.codebook_size, (IMAGE_TOKENS,), generator=generator) + config.image_token_offset
    ids = torch.tensor([config.t2i_token_id, *text, config.soi_token_id, *image, config.eoi_token_id])
    is_image = torch.arange(len(ids)) > TEXT_TOKENS  # soi, image, eoi
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril() | (is_image[:, None] & is_image[None])
    result = Verification()
    with torch.no_grad():
        plain = plain_showo_logits(showo, config.text_config, ids[None], seen[None, None], dtype)
        result.compare("logits", model(ids[None]).logits, plain)
        if model.mm_projector is not None:
            features = torch.randn(4, config.image_feature_size, generator=generator)
            expected = plain_projector(float_weights(showo, dtype), features)
            result.compare("projected features", model.mm_projector(features), expected)
        if clip is not None:
            size = config.vision_config.image_size
            pixels = torch.randn(1, 3, size, size, generator=generator)
            result.compare(
                "tower", model.get_image_features(pixels).last_hidden_state, plain_tower(clip, config, pixels, dtype)
            )
    compare_tokenizer(result, model.image_tokenizer, image_tokenizer, dtype)
    result.check()
    return result


def plain_tower(
    clip: Checkpoint, config: ShowoConfig, pixels: torch.Tensor, dtype: torch.dtype | None
) -> torch.Tensor:
    """Image features by transformers' own model of the tower."""
    tower = CLIPVisionModel.from_pretrained(clip.folder, config=config.vision_config, dtype=dtype).float()
    return tower.eval()(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]


def verify_image_tokenizer(folder: Path, source: Checkpoint, dtype: torch.dtype | None = None) -> Verification:
    """Compare the image tokenizer in `folder` with its source on a small image, see [`verify_showo`]."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    result = Verification()
    compare_tokenizer(result, model, source, dtype)
    result.check()
    return result


@torch.no_grad()
def compare_tokenizer(
    result: Verification, model: ShowoImageTokenizer, source: Checkpoint, dtype: torch.dtype | None = None
):
    """Record the differences of latents and of decoded pixels."""
    generator = torch.Generator().manual_seed(0)
    size = max(PIXELS, model.config.downsampling)
    pixels = torch.rand(1, model.config.in_channels, size, size, generator=generator) * 2 - 1
    encoded = model.encode(pixels)
    codes = model.codes_of(encoded.image_tokens)
    if is_diffusers(source):
        reference = VQModel.from_pretrained(source.folder)
        # Through the dtype of the converted weights, because their rounding is no mistake of the conversion.
        reference = (reference.to(dtype) if dtype is not None else reference).float().eval()
        result.compare("latents", encoded.latents, reference.encode(pixels).latents)
        # Its decoder looks for the nearest codes again, and these are the codes themselves.
        result.compare("pixels", model.decode_quantized(codes), reference.decode(codes).sample)
        return
    result.compare("latents", encoded.latents, plain_encode(source, pixels, dtype))
    result.compare("pixels", model.decode_quantized(codes), plain_decode(source, codes, dtype))
