"""`showo-hf generate --prompts`: many prompts to a folder of images, in a run that resumes and that processes share."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import quoted, seed_number
from ..utils.messages import for_stdout
from .devices import kind_of
from .errors import UsageError
from .files import append_text, check_folder, json_lines, read_json_lines, replace_file
from .image_generation import (
    BATCH_SIZE,
    call_pipeline,
    check_settings,
    drawn_seed,
    draws_by_image,
    pipeline_arguments,
    ready_pipeline,
    size_of,
    tell_seed,
)
from .info import package_version
from .model_loading import choose_device, load_package, load_torch, on_terminal
from .processes import Processes, join_processes
from .results import Record
from .saved_model import read_json
from .scheduler_options import check_scheduler_values
from .texts import check_characters, check_text, with_option_names
from .time_limit import TimeLimit


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


PROMPT_SUFFIXES = (".txt", ".jsonl")
FIELDS = ("prompt", "negative_prompt", "seed")  # of a line of a .jsonl file
INDEX, SETTINGS = "metadata.jsonl", "settings.json"
PART = "part-{}.jsonl"  # the records of one process of a run that is not finished
MOST_PROMPTS = 10_000_000
MOST_THREADS = 4096


@dataclass(frozen=True)
class Wanted:
    """An image of the run: its number, from 0, and what it is made from."""

    number: int
    prompt: str
    negative_prompt: str
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.number:06}.png"

    def is_made(self, record: Record | None, folder: Path) -> bool:
        """Whether `record` is about this image, and the file is there."""
        made = record is not None and all(record.get(name) == value for name, value in asdict(self).items())
        return made and (folder / self.file_name).is_file()


# The file of prompts


def read_prompts(path: Path) -> list[Record]:
    """
    Read a file of prompts: the lines of a .txt file, or JSON objects with `prompt`, and maybe `negative_prompt`, `seed`.

    Empty lines are skipped.

    Raises:
        UsageError: if the file cannot be read, is not UTF-8, has no prompts, or has a line that is not allowed.
    """
    if path.suffix.lower() not in PROMPT_SUFFIXES:
        raise UsageError(f"`--prompts` must be a file that ends in {' or '.join(PROMPT_SUFFIXES)}, got {quoted(path)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        problem = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", "no file")
        raise UsageError(f"`--prompts` must be a text file in UTF-8, but {quoted(path)}: {problem}") from error
    read_line = prompt_of_json if path.suffix.lower() == ".jsonl" else lambda name, line: {"prompt": line.strip()}
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            name = f"--prompts, line {number}"
            record = read_line(name, line)
            check_text(name, record["prompt"])
            check_characters(name, record.get("negative_prompt", ""))
            found.append(record)
    if not found:
        raise UsageError(f"`--prompts` must have a prompt on each line, but {quoted(path)} is empty")
    return found


def prompt_of_json(name: str, line: str) -> Record:
    """A line of a .jsonl file. Raises `UsageError` unless it is an object with the right fields."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"`{name}` must be a JSON object, got {quoted(line)}") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UsageError(f"`{name}` must be a JSON object with a text `prompt`, got {quoted(line)}")
    unknown = [field for field in record if field not in FIELDS]
    if unknown:
        raise UsageError(f"`{name}` must have no fields but {', '.join(FIELDS)}, got {quoted(unknown[0])}")
    if not isinstance(record.get("negative_prompt", ""), str):
        raise UsageError(f"`{name}` must have a text as `negative_prompt`, got {quoted(record['negative_prompt'])}")
    if "seed" in record:
        try:
            if type(record["seed"]) is not int:
                raise argparse.ArgumentTypeError(f"must be an integer, got {quoted(record['seed'])}")
            seed_number(str(record["seed"]))
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"`{name}`: `seed` {error}") from error
    return record


def wanted_images(prompts: list[Record], num: int, seed: int, negative_prompt: str | None) -> Iterator[Wanted]:
    """
    Every image of the run.

    Image i of the run has the seed `seed + i`, and image j of a prompt with a seed of its own that seed plus j.
    """
    for line, record in enumerate(prompts):
        for index in range(num):
            number = line * num + index
            own = record.get("seed")
            negative = record.get("negative_prompt", negative_prompt or "")
            yield Wanted(number, record["prompt"], negative, seed + number if own is None else own + index)


# The folder


def settings_of(options: argparse.Namespace) -> Record:
    """The settings that all images of a folder share; None for what is the model's own."""
    return {
        "model": "embedded" if options.model is None else options.model,
        "dtype": options.dtype,
        "steps": options.steps,
        "guidance": options.guidance,
        "temperature": options.temperature,
        "decoder_steps": options.decoder_steps,
        "size": None if options.size is None else list(options.size),
        "scheduler": options.scheduler,
        "scheduler_options": [f"{name}={value}" for name, value in options.scheduler_option],
        "num": options.num,
    }


def is_begun(folder: Path) -> bool:
    """Whether a folder holds more than the settings of a run that was stopped before its first image."""
    return folder.exists() and any(entry.name != SETTINGS for entry in folder.iterdir())


def open_folder(options: argparse.Namespace, device: str) -> None:
    """
    Prepare the folder of a run: make it, write its settings, and collect what an earlier run left.

    Sums are rounded differently on another kind of device, and with another number of threads. So the settings name
    both, and each process, also of a later run, computes with this number.

    Raises:
        UsageError: if the folder holds other files, or images with other settings.
    """
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    check_folder_of_run(options, device)
    if not is_begun(folder):
        threads = load_torch().get_num_threads()
        seed = drawn_seed(options)
        settings = settings_of(options) | {"seed": seed, "device": kind_of(device), "threads": threads}
        text = json.dumps(settings, indent=2) + "\n"
        replace_file(folder / SETTINGS, lambda path: path.write_text(text, encoding="utf-8"))
    collect_parts(folder)


def check_folder_of_run(options: argparse.Namespace, device: str | None = None) -> None:
    """
    Raise `UsageError` if the folder holds other files, or images with other settings. Writes nothing.

    A `device` of None is not known yet. Folders of earlier versions do not name theirs, nor the number of threads.
    """
    folder, settings = options.output, settings_of(options)
    before = read_json(folder / SETTINGS)
    if not before:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"`--output` must be an empty folder or one of an earlier run, but {quoted(folder)} has other files"
            )
        return
    seed, threads, kind = before.get("seed"), before.get("threads", 1), before.get("device")
    if type(seed) is not int or type(threads) is not int or not 0 < threads <= MOST_THREADS:
        raise UsageError(f"`--output` {quoted(folder)} has a {SETTINGS} that this command did not write")
    if not is_begun(folder):
        return
    if None not in (device, kind) and kind != kind_of(str(device)):
        raise UsageError(
            f"`--output` {quoted(folder)} holds images made on the device {quoted(kind)}, and {quoted(device)} would "
            f"round differently; use `--device {kind}`, or another folder"
        )
    if options.seed is not None:
        settings["seed"] = options.seed
    for name, value in settings.items():
        if before.get(name) != value:
            raise UsageError(
                f"`--output` {quoted(folder)} holds images with {name} {quoted(before.get(name))}, and {quoted(value)} "
                "is asked for now; use another folder"
            )


def collect_parts(folder: Path) -> dict[int, Record]:
    """
    Merge the records of all processes into the index, in the order of the images. Returns them by number.

    Raises:
        UsageError: if a file has a line that is no record. Nothing is changed.
    """
    parts = sorted(path for path in folder.iterdir() if re.fullmatch(PART.format("[0-9]+"), path.name))
    found: dict[int, Record] = {}
    for path in (folder / INDEX, *parts):
        for line, record in enumerate(read_json_lines("--output", path)[0], start=1):
            if type(record.get("number")) is not int:
                raise UsageError(
                    f"`--output` must be a folder of this command, but line {line} of {quoted(path)} has no number"
                )
            found[record["number"]] = record
    if parts:
        text = json_lines(found[number] for number in sorted(found))
        replace_file(folder / INDEX, lambda path: path.write_text(text, encoding="utf-8"))
        for path in parts:
            path.unlink()
    return found


# The work


def generate_from_prompts(options: argparse.Namespace) -> int:
    """
    Make the images of a file of prompts that the folder lacks, this process its share, and print the folder.

    Images are made in batches that do not depend on the number of processes or on what is there, and with the number of
    threads in the settings, so the images are those of one run in one process.
    """
    check_folder("--output", options.output)
    prompts = read_prompts(options.prompts)
    total = len(prompts) * options.num
    if total > MOST_PROMPTS:
        raise UsageError(f"`--prompts` and `--num` must be at most {MOST_PROMPTS:,} images together, got {total:,}")
    check_folder_of_run(options)
    check_settings(options)
    device = choose_device(options.device, options.dtype, options.quiet)
    load_package(options.quiet)
    check_scheduler_values(options)
    check_folder_of_run(options, device)
    processes = join_processes(device)
    # Nothing is written before the pipeline, in each process, has checked the settings of a new folder.
    is_new = not is_begun(options.output)
    existed = options.output.exists()
    pipe = checked_pipeline(options, device) if is_new else None
    processes.wait()
    if processes.first:
        open_folder(options, device)
    processes.wait()
    settings = read_json(options.output / SETTINGS)
    if "threads" in settings:
        load_torch().set_num_threads(settings["threads"])  # launchers set 1; alone, torch takes one per core
    seed = settings["seed"]
    done, _ = read_json_lines("--output", options.output / INDEX)
    records = {record["number"]: record for record in done}
    wanted = list(wanted_images(prompts, options.num, seed, options.negative_prompt))
    open_numbers = {one.number for one in wanted if not one.is_made(records.get(one.number), options.output)}
    if open_numbers:
        pipe = pipe or checked_pipeline(options, device)
        told = seed if is_new and processes.first else None
        try:
            make_images(pipe, options, processes, wanted, open_numbers, told)
        except UsageError:  # it would take hours
            if processes.first and not is_begun(options.output):
                (options.output / SETTINGS).unlink()
                if not existed:
                    options.output.rmdir()
            raise
    processes.wait()
    if processes.first:
        collect_parts(options.output)
        if not options.quiet:
            print(f"images: {total - len(open_numbers)} skipped, {len(open_numbers)} done", file=sys.stderr)
        print(for_stdout(str(options.output)))
    processes.wait()
    return 0


def checked_pipeline(options: argparse.Namespace, device: str) -> DiffusionPipeline:
    """Load the pipeline. Raises `UsageError` for settings that it would refuse in a call."""
    from showo_hf.pipelines.call_state import SamplingParams

    pipe = ready_pipeline(options, device, "ShowoT2IPipeline")
    pipe.set_progress_bar_config(disable=True)
    steps, guidance = pipe.with_defaults(options.steps, options.guidance)
    try:
        pipe.check_inputs(
            prompt="a",
            negative_prompt=options.negative_prompt,
            **size_of(options),
            num_images_per_prompt=1,
            latents=None,
            output_type="pil",
            params=SamplingParams(
                steps, guidance, temperature=options.temperature, decoder_steps=options.decoder_steps
            ),
        )
    except (ValueError, TypeError) as error:
        raise UsageError(with_option_names(error)) from error
    return pipe


def make_images(
    pipe: DiffusionPipeline,
    options: argparse.Namespace,
    processes: Processes,
    wanted: list[Wanted],
    open_numbers: set[int],
    told: int | None,
) -> None:
    """
    Make this process's share of the images in `open_numbers`, and record them. The seed `told` is printed after the first.

    Raises:
        UsageError: if it would take hours, and `--yes` is not given. No image is written.
    """
    from tqdm import tqdm

    size = BATCH_SIZE if draws_by_image(pipe) else 1
    batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    batches = list(processes.share(batch for batch in batches if any(one.number in open_numbers for one in batch)))
    total = sum(one.number in open_numbers for batch in batches for one in batch)
    limit = TimeLimit(options.yes, len(batches))
    hidden = options.quiet or not on_terminal() or not processes.first
    part = options.output / PART.format(processes.index)
    with tqdm(total=total, desc="making", unit="image", disable=hidden) as bar:
        for batch in batches:
            records = []
            for one, image in zip(batch, images_of(pipe, options, batch, limit), strict=True):
                if one.number in open_numbers:
                    replace_file(options.output / one.file_name, image.save)
                    records.append(record_of(one, pipe, options, image.size))
            append_text(part, json_lines(records))
            if told is not None:
                tell_seed(options, told)
                told = None
            bar.update(len(records))


def images_of(
    pipe: DiffusionPipeline, options: argparse.Namespace, batch: list[Wanted], limit: TimeLimit
) -> list[Any]:
    """Make the images of a batch."""
    prompts, seeds = [one.prompt for one in batch], [one.seed for one in batch]
    negative = [one.negative_prompt for one in batch]
    arguments = {
        **pipeline_arguments(options),
        **size_of(options),
        "negative_prompt": negative if any(negative) else None,
    }
    return call_pipeline(pipe, prompts, seeds, arguments, limit.before(None))


def record_of(one: Wanted, pipe: DiffusionPipeline, options: argparse.Namespace, size: tuple[int, int]) -> Record:
    """The line of the index: `file_name` and `text`, as a data set of images has them, and every setting."""
    scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    steps, guidance = pipe.with_defaults(options.steps, options.guidance)
    return {
        "file_name": one.file_name,
        "text": one.prompt,
        **asdict(one),
        "width": size[0],
        "height": size[1],
        "model": "embedded" if options.model is None else options.model,
        "dtype": options.dtype,
        "steps": steps,
        "guidance": guidance,
        "temperature": scheduler.get("temperature") if options.temperature is None else options.temperature,
        "decoder_steps": decoder_steps_of(pipe, options),
        "scheduler": {"class": type(pipe.scheduler).__name__, **scheduler},
        "device": pipe.device.type,
        "threads": load_torch().get_num_threads(),
        "showo_hf": package_version("showo-hf"),
    }


def decoder_steps_of(pipe: DiffusionPipeline, options: argparse.Namespace) -> int | None:
    """The steps of the diffusion decoder; None for a pipeline without one."""
    if pipe.image_decoder is None:
        return None
    return pipe.image_decoder.config.num_inference_steps if options.decoder_steps is None else options.decoder_steps
