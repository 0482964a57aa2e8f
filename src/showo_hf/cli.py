"""The command `showo-hf`: pictures from words, and what is installed here.

torch and the models are imported inside the subcommands, so that help and usage errors do not wait for them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import secrets
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    from .modeling_showo_lfq import ShowoLFQTokenizer


GOOD, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit codes

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
STEP_SUFFIXES = (".gif", ".png")
DTYPES = ("float32", "bfloat16", "float16")
BATCH_SIZE = 8  # pictures made at once; bounds the memory, whatever `--num` is
STRIP_GAP = 2  # white pixels between the pictures of a strip
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 200, 2000

REQUIRED = "torch transformers diffusers accelerate huggingface_hub safetensors tokenizers numpy pillow".split()
OPTIONAL = {"gradio": "the app", "peft": "adapters in training", "pytest": "the tests"}

EXAMPLES = """\
examples:
  showo-hf generate "a red apple, flat style" -o apple.png
  showo-hf info
"""
GENERATE_EXAMPLES = """\
The file names of the finished pictures go to stdout, one a line; everything else goes to stderr.

examples:
  a picture that can be made again
    showo-hf generate "a red apple, flat style" --seed 7 -o apple.png

  four of them: apple-0.png has seed 7, apple-1.png seed 8, and so on
    showo-hf generate "a red apple, flat style" --seed 7 --num 4 -o apple.png

  closer to the words, less varied, and with more time
    showo-hf generate "3d emoji of a smiling cat" --guidance 8 --steps 24 -o cat.png

  watch how it came about: grey is what was not yet decided at a step
    showo-hf generate "an owl, noto style" -o owl.png --save-steps owl.gif

  another model: a folder, or a name on the Hugging Face Hub
    showo-hf generate "a lighthouse at dusk" --model path/to/folder --size 256x384 -o lighthouse.png

exit codes: 0 all pictures are written, 1 something failed, 2 the command was not understood, 130 interrupted
"""


class UsageError(Exception):
    """What the user asked for is not possible. The command ends with exit code 2."""


class CommandError(Exception):
    """The work failed. The command ends with exit code 1."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command on `arguments` (those of the process by default) and return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("showo-hf: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"showo-hf: error: {message}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED
    return GOOD


# Arguments


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command. Parsed options hold the subcommand's function as `run`."""
    parser = argparse.ArgumentParser(
        prog="showo-hf",
        description="Pictures from words with a Show-o model. A small model comes with the package.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"showo-hf {package_version('showo-hf') or 'unknown'}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_generate_parser(commands)
    add_info_parser(commands)
    return parser


def add_generate_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="make pictures from words",
        description="Make pictures from words.",
        epilog=GENERATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", help="what to show, in English")
    add("-o", "--output", type=Path, required=True, help=f"picture to write ({', '.join(PICTURE_SUFFIXES)})")
    add("--model", help="folder, or name on the Hugging Face Hub (default: the embedded model)")
    add("--negative-prompt", metavar="WORDS", help="what to keep away from")
    add("--steps", type=positive_integer, metavar="N", help="steps from nothing to a picture (default: the model's)")
    add("--guidance", type=finite_number, metavar="G", help="pull of the words; 1 is none (default: the model's)")
    add("--temperature", type=finite_number, metavar="T", help="randomness of the order (default: the model's)")
    add("--seed", type=seed_number, metavar="N", help="makes it repeatable (default: a new one, told on stderr)")
    add("--num", type=positive_integer, default=1, metavar="N", help="number of pictures, from seed on (default: 1)")
    add("--size", type=picture_size, metavar="HEIGHT[xWIDTH]", help="in pixels (default: the model's)")
    add("--dtype", choices=DTYPES, default="float32", help="number format of the weights (default: float32)")
    add("--device", help="cpu, cuda, cuda:1, mps ... (default: the accelerator where there is one, else cpu)")
    add("--save-steps", type=Path, metavar="PATH", help="also every step, as a film (.gif) or side by side (.png)")
    add("-q", "--quiet", action="store_true", help="no progress bars")
    add("--debug", action="store_true", help="show the trace of an error")
    parser.set_defaults(run=generate)


def add_info_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, devices, and the embedded model",
        description="Tell what is installed, the devices with their number formats, and what the embedded model is.",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    parser.set_defaults(run=info)


def positive_integer(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def seed_number(text: str) -> int:
    # torch takes seeds up to 2**64 - 1; `--num` counts up from here.
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def finite_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return number


def picture_size(text: str) -> tuple[int, int]:
    """ "256" or "256x384" to (height, width)."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"must be HEIGHTxWIDTH in pixels, such as 256x384, or one number, got {text!r}"
        )
    return int(match[1]), int(match[2] or match[1])


# Files


def check_output(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise `UsageError` unless `path` is one that a picture can be written to."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"`{option}` must end in {', '.join(suffixes)}, got '{path}'")
    if path.is_dir():
        raise UsageError(f"`{option}` must be a file, but '{path}' is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"`{option}` must lie in a folder that exists, but '{path.parent}' does not")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"`{option}` must lie in a folder that can be written to, but '{path.parent}' cannot")


def numbered(path: Path, count: int) -> list[Path]:
    """`path` itself for one picture; for more of them apple-0.png, apple-1.png ... for apple.png."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there: no half-written picture is ever seen."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise CommandError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_steps(frames: list[Image.Image], path: Path) -> None:
    """Write the pictures of the steps: .gif is a film that stays on the last one, else they stand side by side."""
    from PIL import Image

    if path.suffix.lower() == ".gif":
        durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
        return
    width, height = frames[0].size
    strip = Image.new("RGB", ((width + STRIP_GAP) * len(frames) - STRIP_GAP, height), "white")
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * (width + STRIP_GAP), 0))
    strip.save(path)


# showo-hf generate


def generate(options: argparse.Namespace) -> None:
    """Make the pictures and print their names. What can be checked without the model is checked before it is loaded."""
    check_output("--output", options.output, PICTURE_SUFFIXES)
    if options.save_steps is not None:
        check_output("--save-steps", options.save_steps, STEP_SUFFIXES)
        if options.save_steps.resolve() == options.output.resolve():
            raise UsageError(f"`--save-steps` must not be the file of `--output`, got '{options.save_steps}' for both")
    if options.model is not None:
        check_model(options.model)
    seed = options.seed
    if seed is None:
        seed = secrets.randbelow(2**32)
        print(f"seed {seed}", file=sys.stderr)

    device = choose_device(options.device)
    pipe = load_pipeline(options.model, options.dtype, device, options.quiet)
    outputs = numbered(options.output, options.num)
    step_outputs = numbered(options.save_steps, options.num) if options.save_steps else []
    for start in range(0, options.num, BATCH_SIZE):
        count = min(BATCH_SIZE, options.num - start)
        recorder = StepRecorder() if step_outputs else None
        pictures = make_pictures(pipe, options, range(seed + start, seed + start + count), recorder)
        for path, picture in zip(outputs[start : start + count], pictures, strict=True):
            replace_file(path, picture.save)
            print(path, flush=True)
        if recorder is not None:
            frames = step_pictures(pipe.image_tokenizer, recorder.steps, pictures)
            for path, steps in zip(step_outputs[start : start + count], frames, strict=True):
                replace_file(path, partial(save_steps, steps))
                print(path, flush=True)


def check_model(model: str) -> None:
    """Raise `UsageError` for a folder that holds no pipeline, and for what can only be a folder but is none."""
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UsageError(f"`--model` must be a folder with a model_index.json, but '{model}' has none")
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise UsageError(f"`--model` must be a folder, or a name on the Hub such as owner/name; '{model}' is neither")


def accelerators() -> list[str]:
    """The devices beside the CPU that torch can use: cuda:0, cuda:1 ..., mps:0 ..."""
    import torch

    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator().type
    return [f"{kind}:{index}" for index in range(torch.accelerator.device_count())]


def choose_device(name: str | None) -> str:
    """The device of that name; without one the first accelerator, else the CPU. `UsageError` if it is not there."""
    found = accelerators()
    if name is None:
        return found[0] if found else "cpu"
    allowed = ["cpu", *(device.split(":")[0] for device in found[:1]), *found]
    if name not in allowed:
        raise UsageError(f"`--device` must be one that is here ({', '.join(allowed)}), got '{name}'")
    return name


def load_pipeline(model: str | None, dtype: str, device: str, quiet: bool) -> DiffusionPipeline:
    """The pipeline in the folder or of the Hub's name `model`, the embedded one for None, ready on `device`."""
    import diffusers
    import torch
    import transformers

    from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline

    if quiet:
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
    try:
        pipe = ShowoT2IPipeline.from_pretrained(model or EMBEDDED_MODEL, dtype=getattr(torch, dtype))
    except Exception as error:
        raise CommandError(f"cannot load the model '{model or 'embedded'}': {error}") from error
    pipe.set_progress_bar_config(disable=quiet)
    return pipe.to(device)


def make_pictures(
    pipe: DiffusionPipeline, options: argparse.Namespace, seeds: range, recorder: StepRecorder | None
) -> list[Image.Image]:
    """One picture for each seed. What the user left out is left to the pipeline's own defaults."""
    import torch

    height, width = options.size or (None, None)
    wanted = {
        "negative_prompt": options.negative_prompt,
        "height": height,
        "width": width,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "temperature": options.temperature,
        "callback_on_step_end": recorder,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    # One generator a picture, always on the CPU: each picture can be made again alone, with the same draws on any device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    try:
        return pipe(options.prompt, num_images_per_prompt=len(seeds), generator=generators, **given).images
    except ValueError as error:
        raise UsageError(str(error)) from error


class StepRecorder:
    """A pipeline's `callback_on_step_end` that keeps the tokens after every step, (batch, h, w) int64."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, pipe: DiffusionPipeline, step: int, timestep: Any, callback_kwargs: dict) -> dict:
        self.steps.append(callback_kwargs["latents"].clone())
        return callback_kwargs


def step_pictures(
    tokenizer: ShowoLFQTokenizer, steps: list[torch.Tensor], finished: list[Image.Image]
) -> list[list[Image.Image]]:
    """
    The picture after every step, grey where its tokens were unknown.

    Args:
        tokenizer: the picture tokenizer that made `finished`.
        steps: tokens after each step, (batch, h, w) int64, the codebook's size or more where unknown.
        finished: the finished pictures, one for each of the batch.

    Returns:
        for each finished picture one picture a step; the last one is the finished picture itself.
    """
    import torch
    from diffusers.image_processor import VaeImageProcessor

    codebook_size, factor = tokenizer.config.codebook_size, tokenizer.config.downsampling
    # Something must stand in an unknown place when the others are decoded, and it shines through to its neighbours:
    # with the token that will come there, a known place already looks as it will in the end.
    filling = steps[-1].clamp(max=codebook_size - 1)
    films: list[list[Image.Image]] = [[] for _ in finished]
    for tokens in steps[:-1]:
        unknown = tokens >= codebook_size  # (batch, h, w)
        filled = torch.where(unknown, filling, tokens)
        with torch.inference_mode():
            pixels = tokenizer.decode(filled.to(tokenizer.device)).sample.float()  # (batch, 3, H, W) in [-1, 1]
        hidden = unknown[:, None].repeat_interleave(factor, 2).repeat_interleave(factor, 3).to(pixels.device)
        frames = VaeImageProcessor().postprocess(pixels.masked_fill(hidden, 0.0))  # 0 is mid-grey
        for film, frame in zip(films, frames, strict=True):
            film.append(frame)
    return [[*film, picture] for film, picture in zip(films, finished, strict=True)]


# showo-hf info


def info(options: argparse.Namespace) -> None:
    """Print what is installed, as text or as JSON."""
    facts = collect_facts()
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(fact_lines(facts)))


def package_version(name: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def collect_facts() -> dict[str, Any]:
    """Versions, devices and the embedded model, in plain types."""
    from showo_hf import EMBEDDED_MODEL

    versions = {"showo-hf": package_version("showo-hf"), "python": platform.python_version()}
    return {
        "versions": versions | {name: package_version(name) for name in REQUIRED},
        "optional": {name: package_version(name) for name in OPTIONAL},
        "devices": [device_facts(name) for name in ("cpu", *accelerators())],
        "embedded_model": model_facts(Path(EMBEDDED_MODEL)),
    }


def device_facts(name: str) -> dict[str, Any]:
    """What a device is, and the number formats that it multiplies matrices in."""
    import torch

    if name == "cpu":
        kind = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    elif name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(name)
        kind = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        kind = name.split(":")[0]
    return {"name": name, "kind": kind, "dtypes": [dtype for dtype in DTYPES if multiplies(name, dtype)]}


def multiplies(device: str, dtype: str) -> bool:
    import torch

    matrix = torch.ones(8, 8, device=device)
    try:
        matrix.to(getattr(torch, dtype)) @ matrix.to(getattr(torch, dtype))
    except (RuntimeError, TypeError):
        return False
    return True


def model_facts(folder: Path) -> dict[str, Any] | None:
    """Where a saved pipeline lies and what it is, from its small files. None where there is none."""
    if not (folder / "model_index.json").is_file():
        return None
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    text, tokenizer = config.get("text_config") or {}, config.get("image_tokenizer_config") or {}
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "folder": str(folder),
        "pipeline": index.get("_class_name"),
        "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "parameters": sum(count_parameters(path) for path in files if path.suffix == ".safetensors"),
        "backbone": text.get("model_type"),
        "layers": text.get("num_hidden_layers"),
        "hidden_size": text.get("hidden_size"),
        "picture_size": tokenizer.get("sample_size"),
        "picture_tokens": config.get("num_image_tokens"),
        "codebook_size": config.get("codebook_size"),
        "longest_prompt": config.get("max_text_length"),
    }


def count_parameters(path: Path) -> int:
    """Numbers in a .safetensors file, from its header: its length in 8 bytes, then JSON with the shapes."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def fact_lines(facts: dict[str, Any]) -> Iterator[str]:
    """The facts as text, a heading over each part."""
    yield from table("versions", facts["versions"])
    optional = {name: f"{found or 'not installed'} ({OPTIONAL[name]})" for name, found in facts["optional"].items()}
    yield from table("optional", optional)
    devices = {device["name"]: f"{device['kind']}; {', '.join(device['dtypes'])}" for device in facts["devices"]}
    yield from table("devices", devices)
    yield from table("embedded model", facts["embedded_model"] or {"folder": "not installed"})


def table(heading: str, rows: dict[str, Any]) -> Iterator[str]:
    yield heading
    for name, value in rows.items():
        if isinstance(value, int):
            value = f"{value:,}"
        yield f"  {name.replace('_', ' '):16} {'unknown' if value is None else value}"


if __name__ == "__main__":
    sys.exit(main())
