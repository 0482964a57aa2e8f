"""What `showo-hf caption` and `showo-hf ask` share: which images to read, batches of them, results, and resuming."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import positive_integer
from .errors import UsageError
from .files import append_text, check_output, json_lines, read_json_lines, replace_file
from .loading import add_loading_options, check_model, choose_device, load_pipeline


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


#: What counts as an image in a folder; files that are named on the command line are read whatever their names.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
ASKED_FIELDS = ("image", "prompt", "question", "choices")  # what a record answers; the rest of it is the answer
LOADING_THREADS = 4  # decoding lets go of Python's lock, so images load while the model runs

Record = dict[str, Any]
#: Takes a pipeline, images and questions; gives for each image the fields of each answer.
Answer = Callable[[Any, list[Any], list[Record]], list[list[Record]]]

RESUMING = """\
With -o, the results are appended to a file of JSON lines, batch by batch. Run the same command again to go on after an
interrupt: what the file has is not asked again, and images that could not be read are tried again. An image is known
by its name as it was given. The file does not say which model answered, so give each model a file of its own.

exit codes: 0 all is answered, 1 something failed, 2 the command was not understood, 130 interrupted
"""


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that reads images."""
    add = parser.add_argument
    add("-r", "--recursive", action="store_true", help="of a folder, also what lies in its folders")
    add("--json", action="store_true", help="print JSON lines")
    add("-o", "--output", type=Path, metavar="FILE.jsonl", help="append JSON lines to a file, and go on where it ends")
    add(
        "--batch-size",
        type=positive_integer,
        default=8,
        metavar="N",
        help="images, and questions, worked on at once (default: 8)",
    )
    add("--max-new-tokens", type=positive_integer, default=100, metavar="N", help="longest answer (default: 100)")
    add_loading_options(parser)


# Which images


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def is_alone(names: list[str]) -> bool:
    """Whether one image is named, and not a folder, however many may be in it."""
    return len(names) == 1 and not Path(names[0]).is_dir()


def find_images(names: Iterable[str], recursive: bool) -> list[str]:
    """
    Files, folders and URLs to the images that they stand for, each once; those of a folder in the order of their names.

    Raises:
        UsageError: for what does not exist, and for a folder without images.
    """
    found: dict[str, None] = {}
    for name in names:
        path = Path(name)
        if is_url(name):
            found[name] = None
        elif name and path.is_dir():
            found.update(dict.fromkeys(images_in(path, recursive)))
        elif name and path.exists():
            found[str(path)] = None
        else:
            raise UsageError(f"an image must be a file, a folder or a URL, but '{name}' does not exist")
    return list(found)


def images_in(folder: Path, recursive: bool) -> list[str]:
    """The images in a folder; hidden files are left out. `UsageError` if there are none."""
    try:
        files = [path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.is_file()]
    except OSError as error:
        raise UsageError(f"the folder '{folder}' cannot be read: {error.strerror or error}") from error
    visible = [path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    images = [str(path) for path in visible if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        hint = "" if recursive else "; its folders are looked into with --recursive"
        raise UsageError(f"the folder '{folder}' holds no images ({', '.join(IMAGE_SUFFIXES)}){hint}")
    return sorted(images)


@dataclass(frozen=True)
class Loaded:
    """An image, or None and why it could not be read."""

    name: str
    image: Image.Image | None
    problem: str = ""


def load(name: str) -> Loaded:
    """Read one image, whatever it is."""
    from PIL import UnidentifiedImageError

    from ..processing.images import load_image

    if not is_url(name) and not Path(name).is_file():
        return Loaded(name, None, "no such file")
    try:
        return Loaded(name, load_image(name if is_url(name) else Path(name)))
    except (ValueError, TypeError) as error:
        # The cause alone: the message around it names an argument, which is not the user's.
        cause = error.__cause__ or error
        reason = "no image in a known format" if isinstance(cause, UnidentifiedImageError) else str(cause)
        return Loaded(name, None, " ".join(reason.split()) or type(cause).__name__)


# What is asked


@dataclass(frozen=True)
class Job:
    """An image and what is to be asked about it: the fields that a record has of each question."""

    image: str
    questions: tuple[Record, ...]


def identity(record: Record) -> str:
    """What a record is the answer to, as a text."""
    return json.dumps([record.get(field) for field in ASKED_FIELDS])


def open_jobs(images: Iterable[str], questions: Iterable[Record], done: Iterable[Record]) -> list[Job]:
    """What is left to ask when `done` is answered."""
    answered = {identity(record) for record in done if "error" not in record}
    jobs = []
    for image in images:
        rest = tuple(one for one in questions if identity({"image": image, **one}) not in answered)
        if rest:
            jobs.append(Job(image, rest))
    return jobs


def batches(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """At most `size` jobs that follow each other and ask the same."""
    for _, same in groupby(jobs, key=lambda job: job.questions):
        group = list(same)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def loaded_batches(jobs: Iterable[Job], size: int) -> Generator[tuple[list[Record], list[Loaded]]]:
    """The questions and the images of each batch; while one is worked on, the next one's images are read."""
    pool = ThreadPoolExecutor(LOADING_THREADS)
    try:
        waiting = None
        for batch in batches(jobs, size):
            coming = (list(batch[0].questions), [pool.submit(load, job.image) for job in batch])
            if waiting is not None:
                yield waiting[0], [future.result() for future in waiting[1]]
            waiting = coming
        if waiting is not None:
            yield waiting[0], [future.result() for future in waiting[1]]
    finally:
        pool.shutdown(cancel_futures=True)


def ask_each(call: Callable[[list, list[str]], list], images: list, prompts: list[str]) -> list[list]:
    """
    Every prompt about every image.

    Args:
        call: takes as many images as prompts, gives an answer for each pair. An image that is given several times in
            a row is read once by the pipelines.

    Returns:
        the answers of each image, in the order of the prompts.
    """
    found = call([image for image in images for _ in prompts], prompts * len(images))
    return [found[start : start + len(prompts)] for start in range(0, len(found), len(prompts))]


def ask_in_words(
    pipe: DiffusionPipeline, loaded_images: list[Image.Image], prompts: list[str], options: argparse.Namespace
) -> list[list[str]]:
    """What the model says to every prompt about every image; see [`ask_each`]."""

    def call(images: list, questions: list[str]) -> list[str]:
        return pipe(images, questions, max_new_tokens=options.max_new_tokens, batch_size=options.batch_size).texts

    return ask_each(call, loaded_images, prompts)


# Where results go


class Results:
    """Where records go: a file of JSON lines, or stdout as JSON or as `line` has it. Errors are told on stderr too."""

    def __init__(self, output: Path | None, as_json: bool, line: Callable[[Record], str]):
        self.output, self.as_json, self.line = output, as_json, line
        self.failed = 0

    def put(self, records: list[Record]) -> None:
        for record in records:
            if "error" in record:
                self.failed += 1
                print(f"showo-hf: error: '{record['image']}' cannot be read: {record['error']}", file=sys.stderr)
        if self.output is not None:
            append_text(self.output, json_lines(records))
        elif self.as_json:
            print(json_lines(records), end="", flush=True)
        else:
            lines = [printable(self.line(record)) for record in records if "error" not in record]
            print("".join(f"{line}\n" for line in lines), end="", flush=True)


def printable(text: str) -> str:
    """`text` with what stdout's encoding lacks written as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def one_line(*parts: str) -> str:
    """Parts of a result with a space between them, none of which may break the line."""
    return " ".join(" ".join(parts).split())


def resume(output: Path, images: Iterable[str]) -> list[Record]:
    """
    What an earlier run has left in `output`, which is made good for more lines.

    A line that was cut off goes, and so do the errors of `images`, which are tried again: in the end each question
    has one line.

    Raises:
        UsageError: if the file cannot be written, or holds something else.
    """
    check_output("--output", output, (".jsonl",))
    records, whole = read_json_lines("--output", output)
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("image"), str):
            raise UsageError(
                f"`--output` must be a file of this command, but line {number} of '{output}' has no image"
            )
    asked = set(images)
    kept = [record for record in records if not ("error" in record and record["image"] in asked)]
    if not whole or len(kept) < len(records):
        replace_file(output.resolve(), lambda temporary: temporary.write_text(json_lines(kept), encoding="utf-8"))
    return kept


# The work


def read_images(
    options: argparse.Namespace,
    names: list[str],
    questions: list[Record],
    answer: Answer,
    line: Callable[[Record], str],
) -> int:
    """
    Ask `questions` about the images that `names` stand for, and give the exit code.

    What can be checked without the model is checked before it is loaded.

    Args:
        names: files, folders and URLs.
        questions: for each, the fields of a record that say what is asked.
        answer: see `Answer`.
        line: a record as a line of text.
    """
    images = find_images(names, options.recursive)
    done = [] if options.output is None else resume(options.output, images)
    jobs = open_jobs(images, questions, done)
    if options.model is not None:
        check_model(options.model)
    device = choose_device(options.device)
    results = Results(options.output, options.json, line)
    if options.output is not None:
        append_text(options.output, "")  # a file that cannot be written is found before the work
    if jobs:
        work(options, device, jobs, len(images), answer, results)
    if options.output is not None:
        if not options.quiet:
            counts = (
                f"{len(images) - len(jobs)} done before, {len(jobs) - results.failed} now, {results.failed} failed"
            )
            print(f"images: {counts}", file=sys.stderr)
        print(printable(str(options.output)))
    return 1 if results.failed else 0


def work(
    options: argparse.Namespace, device: str, jobs: list[Job], total: int, answer: Answer, results: Results
) -> None:
    """Answer the jobs batch by batch, with a progress bar where there are several images."""
    from tqdm import tqdm

    with closing(loaded_batches(jobs, options.batch_size)) as loaded:
        first = next(loaded)
        pipe = None
        # An image that cannot be read is told at once, where there is no other that needs the model.
        if len(first[1]) < len(jobs) or any(one.image is not None for one in first[1]):
            pipe = load_pipeline(options.model, options.dtype, device, options.quiet, "ShowoMMUPipeline")
        hidden = options.quiet or total == 1
        done = total - len(jobs)
        with tqdm(total=total, initial=done, desc="reading", unit="image", disable=hidden) as bar:
            for questions, batch in chain([first], loaded):
                records = batch_records(pipe, questions, batch, answer)
                with bar.external_write_mode(file=sys.stdout):
                    results.put(records)
                bar.update(len(batch))


def batch_records(
    pipe: DiffusionPipeline | None, questions: list[Record], batch: list[Loaded], answer: Answer
) -> list[Record]:
    """The records of a batch, image by image: one for each question, or one that tells why there is none."""
    good = [one for one in batch if one.image is not None]
    try:
        answers = iter(answer(pipe, [one.image for one in good], questions) if good else [])
    except ValueError as error:  # such as a question that is longer than the model's context
        raise UsageError(str(error)) from error
    records: list[Record] = []
    for one in batch:
        if one.image is None:
            records.append({"image": one.name, "error": one.problem})
        else:
            pairs = zip(questions, next(answers), strict=True)
            records += [{"image": one.name, **question, **found} for question, found in pairs]
    return records
