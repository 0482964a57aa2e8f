"""The README.md of a converted model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from showo_hf.models.configuration_image_tokenizer import ShowoImageTokenizerConfig
from showo_hf.models.configuration_showo import ShowoConfig

from .verify import Verification


SHOWO_TEXT = """
# {title}

Show-o: one transformer that answers questions about images and generates images
([arXiv:2408.12528](https://arxiv.org/abs/2408.12528)).
{variant} Images have {size} x {size} pixels and {tokens} tokens; the codebook has {codes} entries.

Converted from {source} to the format of transformers and diffusers by showo-hf.

```python
from showo_hf import ShowoT2IPipeline
pipe = ShowoT2IPipeline.from_pretrained("{here}")
pipe("a red apple on a wooden table").images[0].save("apple.png")
```
{code}
{parts}

{ending}
"""

CODE_TEXT = """
This folder contains the code. If you trust it, you can load the model without showo-hf:

```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("{here}", trust_remote_code=True)
```
"""

TOKENIZER_TEXT = """
# MAGVIT-v2 image tokenizer

Encodes images to discrete tokens and decodes them, with a lookup-free quantizer
([arXiv:2310.05737](https://arxiv.org/abs/2310.05737)).
A token stands for {factor} x {factor} pixels; the codebook has {codes} entries. Converted from {source} by showo-hf.

```python
from showo_hf import ShowoLFQTokenizer
tokenizer = ShowoLFQTokenizer.from_pretrained("{here}")
image_tokens = tokenizer.encode(pixel_values).image_tokens
```

{ending}
"""

VQ_TEXT = """
# VQ image tokenizer

Encodes images to discrete tokens and decodes them, with a codebook of vectors
([arXiv:1711.00937](https://arxiv.org/abs/1711.00937), [arXiv:2012.09841](https://arxiv.org/abs/2012.09841)).
A token stands for {factor} x {factor} pixels; the codebook has {codes} entries. Converted from {source} by showo-hf.

```python
from showo_hf import ShowoVQTokenizer
tokenizer = ShowoVQTokenizer.from_pretrained("{here}")
image_tokens = tokenizer.encode(pixel_values).image_tokens
```

{ending}
"""

CLIP_TEXT = "It reads images as CLIP features and generates them as discrete tokens."


@dataclass
class Origin:
    """
    The origin of a converted model.

    Args:
        names: option to the converted Hub name; "" for a local source, because its path is private.
        license: the licence that the source's card names.
        repo_id: the repository of the converted model; a placeholder by default.
    """

    names: dict[str, str] = field(default_factory=dict)
    license: str | None = None
    repo_id: str = "folder-or-repository"


def origin_of(named: Mapping[str, str | Path], folder: Path, repo_id: str | None) -> Origin:
    """
    The [`Origin`] of a conversion.

    Args:
        named: option to what the user named, a path or a Hub name.
        folder: where the main source is now; its README.md names the licence.
        repo_id: where the model will be uploaded.
    """
    names = {name: "" if Path(value).expanduser().exists() else str(value) for name, value in named.items()}
    return Origin(names, read_license(folder), repo_id or Origin.repo_id)


def read_license(folder: Path) -> str | None:
    """The licence in the header of a checkpoint's README.md; None if there is none."""
    card = folder / "README.md"
    try:
        return ModelCard.load(card).data.get("license") if card.is_file() else None
    except Exception:  # an unreadable header names no licence
        return None


def write_model_card(
    folder: Path, config: ShowoConfig, origin: Origin, verified: Verification | None, with_code: bool = False
):
    """Write the card of a converted Show-o."""
    source = origin.names.get("showo", "")
    parts = [f"- {name.replace('_', ' ')}: {shown(value)}" for name, value in origin.names.items()]
    text = SHOWO_TEXT.format(
        title=source.split("/")[-1] or "Show-o",
        variant=variant(config),
        size=config.image_tokenizer_config.sample_size,
        tokens=config.num_image_tokens,
        codes=config.codebook_size,
        source=shown(source),
        here=origin.repo_id,
        code=CODE_TEXT.format(here=origin.repo_id) if with_code else "",
        parts="Converted from\n\n" + "\n".join(parts) if parts else "",
        ending=ending(origin, verified),
    )
    write(folder, text, source, origin, "text-to-image", "diffusers", ["show-o", "showo-hf", "any-to-any"])


def write_tokenizer_card(
    folder: Path, config: ShowoImageTokenizerConfig, origin: Origin, verified: Verification | None
):
    """Write the card of a converted image tokenizer."""
    template, tag = (VQ_TEXT, "vqgan") if config.model_type == "showo_vq" else (TOKENIZER_TEXT, "magvit-v2")
    source = origin.names.get("image_tokenizer", "")
    text = template.format(
        factor=config.downsampling,
        codes=config.codebook_size,
        source=shown(source),
        here=origin.repo_id,
        ending=ending(origin, verified),
    )
    write(folder, text, source, origin, "image-feature-extraction", "transformers", [tag, "showo-hf"])


def variant(config: ShowoConfig) -> str:
    """One sentence on the input for image understanding."""
    if config.image_feature_size is None:
        return "It reads and generates images as the same discrete tokens."
    if config.vision_config is None:
        return f"{CLIP_TEXT} This folder does not contain the CLIP tower."
    return CLIP_TEXT


def shown(source: str) -> str:
    """A source as a link, without local paths."""
    return f"[{source}](https://huggingface.co/{source})" if source else "a local checkpoint"


def ending(origin: Origin, verified: Verification | None) -> str:
    """The licence, and the result of the verification."""
    licence = f"Licence: {origin.license}, like the source." if origin.license else "Licence: see the source."
    if verified is None:
        return f"{licence} The conversion was not verified (`--verify` does that)."
    return f"{licence} Verified on a short sequence and a small image, in float32: {verified}."


def write(folder: Path, text: str, source: str, origin: Origin, pipeline_tag: str, library: str, tags: list[str]):
    """Write the README.md with the header that the Hub reads."""
    data = ModelCardData(
        license=origin.license, base_model=source or None, pipeline_tag=pipeline_tag, library_name=library, tags=tags
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text.strip()}\n").save(folder / "README.md")
