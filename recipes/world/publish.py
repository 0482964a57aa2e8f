"""Write the finished model of the world as a folder that the package can ship. Run from the repository root:

    python -m recipes.world.publish --decoder checkpoints/world-image-decoder --steps 16 --guidance 1.5 \\
        --temperature 4 --output checkpoints/published/showo-world
    python -m benchmarks.world --model checkpoints/published/showo-world --split test

and then the first command again with `--results runs/world-benchmark`.

The weights are stored in bfloat16, the image tokenizer's in float32. All load in float32.

The model card lists the words that the model knows, and the tables of benchmarks.world that are in the folder of results:
the test split's, or, before it was measured, the validation split's. They must have been measured with the published folder,
which is why it is written before, too.
"""

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import torch

from recipes.file_hashes import files_hash, weights_hash
from recipes.world.words import THINGS
from showo_hf import ShowoDiffusionDecoder, ShowoT2IPipeline
from showo_hf.training.results import cast_weights, tidy_pipeline
from showo_hf.utils.argument_types import positive_integer, scale_number
from showo_hf.utils.atomic_folder import atomic_folder


#: Settings that the tables of a card have in common, if they depend on them: what was asked, and who judged.
SHARED_SETTINGS = ("count", "seed", "objects", "detector_weights", "found_above", "clear_above")
#: The order of the tables of a card. Others come behind them.
TABLES = (
    "Images of unseen combinations", "Images of trained combinations, against unseen ones",
    "Images of unseen combinations by wording, right", "The judge on scenes of unseen combinations, and a baseline",
    "Painting one thing over with another", "Questions about real scenes of unseen combinations", "Questions in detail",
    "Turns of scripted conversations",
)  # fmt: skip
DECODER = "image_decoder"  # the folder of a pipeline's diffusion decoder
DECODER_SETTINGS = ("decoder_weights", "decoder_config")  # of all tables for which images were decoded
SCENE, SCENE_SEED = "a red apple to the left of a blue car", 0  # the image that the card's questions are about
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: any-to-any
language: en
tags:
- show-o
- discrete-diffusion
widget:
- text: {scene}
- text: three stars at night
- text: a penguin, 3d style
- text: a purple cat
- text: a dog on the grass
- text: two cats, noto style
- {{text: "what is this?", src: scene.png}}
- {{text: "how many things are there?", src: scene.png}}
- {{text: "what is the background?", src: scene.png}}
- {{text: "what style is it?", src: scene.png}}
- messages: [{{role: user, content: "show me a red apple, then a blue car"}}]
- messages: [{{role: user, content: "draw a dog on the grass."}}]
---

# {name}

{name} is a small Show-o model of a small world: it draws {things} things, alone or together, in colours, numbers, places and
four styles. It answers questions about such images, and writes text and images in one answer. The package showo-hf includes
it, so you can try everything in the package on a laptop and without a download.

```python
from showo_hf import EMBEDDED_MODEL, ShowoAnyToAnyPipeline, ShowoMMUPipeline, ShowoT2IPipeline

pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
pipe("{scene}").images[0].save("scene.png")
ShowoMMUPipeline(**pipe.components)("scene.png", ["what is this?", "what is left of the car?"]).texts
ShowoAnyToAnyPipeline(**pipe.components)("show me a dog, then a cat").content
```

## Words it knows

Upper and lower case do not matter. The model knows no other things. {recoloured} of the things also come in red, orange,
yellow, green, blue, purple and pink, in the flat style alone. The pipelines that draw a prompt warn if it has none of these
words.

{words}

## Architecture

| part | description |
| --- | --- |
{parts}

The weights are stored in bfloat16. The image tokenizer's are stored in float32: rounded, it would give other tokens. All
weights load in float32.

## Abilities and limits
{results}
The model draws what it knows, {size} x {size} pixels large. It was not trained on photographs, people, or text in images.

## Training data

The things are cut out of four open emoji sets, which are the styles: "flat" is Twemoji (CC BY 4.0), "fluent" and "3d" are
Fluent Emoji (MIT), "noto" is Noto Emoji (Apache 2.0). The images are not part of the package. The package's NOTICE lists
sources and licences, and its documentation (`docs/embedded_model.md`) describes how to train the model again.
"""


def wrapped(text: str) -> str:
    """A paragraph in lines of at most 119 characters, with each name in one line."""
    return textwrap.fill(text, 119, break_on_hyphens=False)


def words_section(known_words: dict[str, list[str]]) -> str:
    """One paragraph for each group of words."""
    return "\n\n".join(wrapped(f"**{group}**: {', '.join(words)}") for group, words in known_words.items())


def parts_section(pipe: Any, decoder: ShowoDiffusionDecoder | None) -> str:
    """The rows of the table of the architecture."""
    text, tokenizer = pipe.model.config.text_config, pipe.model.config.image_tokenizer_config
    counts = {name: sum(weight.numel() for weight in part.parameters()) / 1e6 for name, part in parts_of(pipe).items()}
    side = tokenizer.sample_size // tokenizer.downsampling
    rows = [
        f"| transformer | {text.model_type.title()} with QK-Norm, hidden size {text.hidden_size}, "
        f"{text.num_hidden_layers} layers, {text.num_attention_heads} heads; {counts['transformer']:.1f} million weights |",
        f"| image tokenizer | {tokenizer.sample_size} x {tokenizer.sample_size} pixels to {side} x {side} tokens, a "
        f"codebook of {tokenizer.codebook_size:,} entries; {counts['image tokenizer']:.1f} million weights |",
        f"| text tokenizer | byte-pair encoding with {len(pipe.processor.tokenizer):,} ids |",
    ]
    if decoder is not None:
        weights = sum(weight.numel() for weight in decoder.parameters()) / 1e6
        steps = decoder.config.num_inference_steps
        rows.append(f"| diffusion decoder | {steps} step{'s' if steps > 1 else ''}; {weights:.1f} million weights |")
    return "\n".join(rows)


def parts_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """The transformer and the image tokenizer."""
    return {"transformer": pipe.model.model, "image tokenizer": pipe.model.image_tokenizer}


def read_tables(folder: Path) -> tuple[str, dict[str, Any]]:
    """
    The split and the tables that benchmarks.world wrote: the test split if it is there, else the validation split.

    Raises:
        ValueError: if there are none.
    """
    files = {split: folder / f"tables-{split}.json" for split in ("test", "validation")}
    split = next((split for split, file in files.items() if file.exists()), None)
    if split is None:
        names = " or ".join(file.name for file in files.values())
        raise ValueError(f"`results` must be a folder with {names}, but '{folder}' has none.")
    return split, json.loads(files[split].read_text(encoding="utf-8"))


def results_section(folder: Path) -> str:
    """The tables of [`read_tables`], in the order of `TABLES`."""
    _, tables = read_tables(folder)
    places = {title: place for place, title in enumerate(TABLES)}
    sections = []
    for title, table in sorted(tables.items(), key=lambda one: places.get(one[0], len(places))):
        rows = [table["head"], ["---"] * len(table["head"]), *table["rows"]]
        sections.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "".join(f"\n{section}\n" for section in sections)


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """The class of a scheduler and its config, as benchmarks.world writes them beside its tables."""
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return {"name": type(scheduler).__name__, **config}


def model_weights(folder: Path) -> str:
    """A hash of the weights of a pipeline but for its diffusion decoder, which changes pixels alone."""
    return weights_hash(folder, without=DECODER)


def decoder_settings(folder: Path | None) -> dict[str, str | None]:
    """Hashes of the weights and of the config of a pipeline's diffusion decoder; None of both if it has none."""
    decoder = folder and folder / DECODER
    if not decoder or not decoder.is_dir():
        return dict.fromkeys(DECODER_SETTINGS)
    return dict(zip(DECODER_SETTINGS, (weights_hash(decoder), files_hash(decoder, ("config.json",))), strict=True))


def settings_of(folder: Path, pipe: Any) -> dict[str, Any]:
    """What benchmarks.world writes beside the tables of a folder, of which `pipe` is the pipeline."""
    steps, guidance = pipe.with_defaults(None, None)
    settings = {
        "model_weights": model_weights(folder),
        **decoder_settings(folder),
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "scheduler": scheduler_settings(pipe.scheduler),
    }
    return json.loads(json.dumps(settings))  # tuples become lists, as in a file


def check_tables(folder: Path, settings: dict[str, Any]) -> None:
    """
    Raise `ValueError` unless all tables of [`read_tables`] were measured with these settings, and alike.

    Tables for which no images were made have no steps, guidance, scheduler and decoder. All have a hash of
    the other weights.
    """
    split, tables = read_tables(folder)
    check_alike(split, tables)
    for title, table in tables.items():
        needed = ("model_weights", *(DECODER_SETTINGS if "num_inference_steps" in table["settings"] else ()))
        measured = {**settings, **dict.fromkeys(needed), **table["settings"]}
        for name, value in settings.items():
            if measured[name] != value:
                raise ValueError(
                    f"`results` must hold tables of the published model, with `{name}` {value!r}, but '{title}' in "
                    f"tables-{split}.json was measured with {measured[name]!r}. Run benchmarks.world on the published "
                    "folder, which `publish` writes without `results`, too."
                )


def check_alike(split: str, tables: dict[str, Any]) -> None:
    """Raise `ValueError` if two tables of a split differ in one of `SHARED_SETTINGS`."""
    first: dict[str, tuple[str, Any]] = {}
    for title, table in tables.items():
        for name in SHARED_SETTINGS:
            if name not in table["settings"]:
                continue
            value = table["settings"][name]
            other, expected = first.setdefault(name, (title, value))
            if value != expected:
                raise ValueError(
                    f"`results` must hold tables that were measured alike, but in tables-{split}.json `{name}` is "
                    f"{expected!r} for '{other}' and {value!r} for '{title}'. Run all parts of benchmarks.world with the "
                    "same options."
                )


def measured_section(folder: Path, settings: dict[str, Any]) -> str:
    """One sentence about the split and the settings of the tables."""
    split, _ = read_tables(folder)
    scheduler = dict(settings["scheduler"])
    name, _ = scheduler.pop("name"), scheduler.pop("mask_token_id", None)
    options = ", ".join(f"{key}: {value}" for key, value in scheduler.items() if value is not None)
    steps = settings["num_inference_steps"]
    told = f"{name}{f' ({options})' if options else ''}"
    told += ", with the diffusion decoder" if settings["decoder_weights"] else ""
    sentence = (
        f'These tables were measured on the split "{split}", with {steps} step{"s" if steps > 1 else ""}, guidance scale '
        f"{settings['guidance_scale']:g} and {told}. An image is right if everything that its prompt names is right. "
        'The guide "How the embedded model is made" in the documentation of showo-hf describes all columns.'
    )
    return f"\n{wrapped(sentence)}\n"


def model_card(
    name: str, pipe: Any, decoder: ShowoDiffusionDecoder | None, results: Path | None, settings: dict[str, Any]
) -> str:
    """
    The text of the model card.

    Args:
        name: the model's name.
        pipe: its pipeline.
        decoder: its diffusion decoder.
        results: the folder of [`read_tables`], or None.
        settings: see [`settings_of`].

    Raises:
        ValueError: if the results were measured with other settings.
    """
    measured = ""
    if results is not None:
        check_tables(results, settings)
        measured = measured_section(results, settings) + results_section(results)
    return CARD.format(
        name=name,
        things=len(THINGS),
        recoloured=sum(thing.recoloured for thing in THINGS.values()),
        words=words_section(pipe.processor.known_words),
        parts=parts_section(pipe, decoder),
        results=measured,
        scene=SCENE,
        size=pipe.model.config.image_tokenizer_config.sample_size,
    )


def publish(
    model: Path,
    output: Path,
    decoder: Path | None = None,
    results: Path | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
) -> None:
    """
    Write the folder `output`, and replace an existing one.

    Args:
        model: the trained pipeline's folder.
        output: the folder that is written; its name is the model's.
        decoder: the diffusion decoder's folder.
        results: the folder with the results of benchmarks.world for the published folder.
        steps, guidance: the number of inference steps and the guidance scale of calls that name none; the trained model's
            own by default.
        temperature: the temperature of its scheduler; the trained model's own by default.

    Raises:
        ValueError: if the model's processor does not say which words it knows, or if the results are missing, were
            measured with other weights, steps, guidance or scheduler than those published, or not all alike.
    """
    image_decoder = None
    if decoder is not None:
        image_decoder = ShowoDiffusionDecoder.from_pretrained(decoder, dtype=torch.bfloat16)
    pipe = ShowoT2IPipeline.from_pretrained(model, dtype=torch.float32, image_decoder=image_decoder)
    if not pipe.processor.known_words:
        raise ValueError(f"`model` must have a processor with `known_words`, but '{model}' has one without.")
    chosen = {"image_num_inference_steps": steps, "image_guidance_scale": guidance}
    pipe.model.config.update({name: value for name, value in chosen.items() if value is not None})
    if temperature is not None:
        pipe.register_modules(scheduler=pipe.scheduler.from_config(pipe.scheduler.config, temperature=temperature))
    cast_weights(pipe, torch.bfloat16)
    with atomic_folder(output, overwrite=True) as folder:
        pipe.save_pretrained(folder)
        tidy_pipeline(folder)
        published = ShowoT2IPipeline.from_pretrained(folder)
        card = model_card(output.name, published, image_decoder, results, settings_of(folder, published))
        (folder / "README.md").write_text(card, encoding="utf-8")
        published.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(SCENE_SEED)
        published(SCENE, generator=generator).images[0].save(folder / "scene.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the finished model of the world, with its model card.")
    parser.add_argument("--model", type=Path, default=Path("checkpoints/showo-world"), help="the trained pipeline")
    parser.add_argument("--decoder", type=Path, help="its diffusion decoder")
    parser.add_argument("--results", type=Path, help="results of benchmarks.world for the folder that is written")
    parser.add_argument("--steps", type=positive_integer, help="inference steps of calls that name no number")
    parser.add_argument("--guidance", type=scale_number, help="guidance scale of calls that name none")
    parser.add_argument("--temperature", type=scale_number, help="temperature of the scheduler")
    parser.add_argument("--output", type=Path, required=True, help="the folder that is written")
    options = parser.parse_args(arguments)
    publish(
        options.model,
        options.output,
        options.decoder,
        options.results,
        options.steps,
        options.guidance,
        options.temperature,
    )
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    print(f"{options.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
