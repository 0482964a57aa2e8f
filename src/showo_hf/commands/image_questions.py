"""What `showo-hf caption` and `showo-hf ask` share: questions about many images, in batches that resume."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from ..utils.argument_types import MAX_PIXELS, integer, user_path
from ..utils.messages import examples, for_stdout
from .devices import kind_of
from .errors import UsageError
from .files import check_name
from .image_files import LoadedImage, add_max_pixels, find_images, load
from .model_loading import add_loading_options, check_model, choose_device, load_package, load_pipeline, on_terminal
from .processes import Processes, join_processes, process_count
from .results import (
    Record,
    Results,
    check_settings,
    collect_parts,
    part_of,
    question_key,
    resume,
    write_settings,
)
from .texts import with_option_names


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


MOST_IN_BATCH, MOST_NEW_TOKENS = 4096, 100_000
LOADING_THREADS = 4  # image decoders release the GIL, so images load while the model runs

#: Maps a pipeline, images and questions to the fields of every answer, by image and question.
Answer = Callable[[Any, list[Any], list[Record]], list[list[Record]]]

RESUMING = """\
-o appends the results to a file of JSON lines, batch by batch. Run the same command again to resume after an
interruption: answered questions are skipped, and images that could not be read are tried again. Images are identified
by the name given. The settings are in a file beside it, out.settings.json for out.jsonl; use one file per model.
Several processes, started by `accelerate launch -m showo_hf_command`, share the images and need -o.

exit codes: 0 every question is answered, 1 the work failed, 2 the arguments are not valid, 130 interrupted
"""


def add_question_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that asks about images."""
    add = parser.add_argument
    add("-r", "--recursive", action="store_true", help="include the subfolders of folders")
    add("--json", action="store_true", help="print JSON lines")
    add(
        "-o",
        "--output",
        type=user_path,
        metavar="FILE.jsonl",
        help="append JSON lines to a file; resumes where it ends",
    )
    add(
        "--batch-size",
        type=integer(1, MOST_IN_BATCH),
        default=8,
        metavar="N",
        help="images and questions per batch (default: 8)",
    )
    add(
        "--max-new-tokens",
        type=integer(1, MOST_NEW_TOKENS),
        default=100,
        metavar="N",
        help="longest answer (default: 100)",
    )
    add_max_pixels(parser)
    add_loading_options(parser)


# Jobs


@dataclass(frozen=True)
class Job:
    """An image and the questions about it. A question is the fields that it adds to a record."""

    image: str
    questions: tuple[Record, ...]


def open_jobs(images: Iterable[str], questions: Iterable[Record], done: Iterable[Record]) -> list[Job]:
    """The jobs that remain when the records in `done` exist. Records with an error do not count as done."""
    answered = {question_key(record) for record in done if "error" not in record}
    jobs = []
    for image in images:
        rest = tuple(one for one in questions if question_key({"image": image, **one}) not in answered)
        if rest:
            jobs.append(Job(image, rest))
    return jobs


def batches(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Split the jobs, in order, into batches of at most `size` jobs with equal questions."""
    for _, same in groupby(jobs, key=lambda job: job.questions):
        group = list(same)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def loaded_batches(
    groups: Iterable[list[Job]], max_pixels: int = MAX_PIXELS
) -> Generator[tuple[list[Record], list[LoadedImage]]]:
    """Yield the questions and images of each batch. The images of the next batch load in the background."""
    pool = ThreadPoolExecutor(LOADING_THREADS)
    try:
        waiting = None
        for batch in groups:
            coming = (list(batch[0].questions), [pool.submit(load, job.image, max_pixels) for job in batch])
            if waiting is not None:
                yield waiting[0], [future.result() for future in waiting[1]]
            waiting = coming
        if waiting is not None:
            yield waiting[0], [future.result() for future in waiting[1]]
    finally:
        pool.shutdown(cancel_futures=True)


def ask_each(call: Callable[[list, list[str]], list], images: list, prompts: list[str]) -> list[list]:
    """
    Ask every prompt about every image.

    Args:
        call: maps equally many images and prompts to one answer per pair. The pairs of an image are consecutive, so
            the pipelines encode each image once.

    Returns:
        the answers by image, in the order of the prompts.
    """
    found = call([image for image in images for _ in prompts], prompts * len(images))
    return [found[start : start + len(prompts)] for start in range(0, len(found), len(prompts))]


def generate_answers(
    pipe: DiffusionPipeline, images: list[Image.Image], prompts: list[str], options: argparse.Namespace
) -> list[list[str]]:
    """Generate the answer to every prompt about every image; see [`ask_each`]."""

    def call(pair_images: list, pair_prompts: list[str]) -> list[str]:
        limits = {"max_new_tokens": options.max_new_tokens, "batch_size": options.batch_size}
        return pipe(pair_images, pair_prompts, **limits).texts

    return ask_each(call, images, prompts)


# The work


def answer_questions(
    options: argparse.Namespace,
    names: list[str],
    questions: list[Record],
    answer: Answer,
    line: Callable[[Record], str],
    assumed: Record | None = None,
) -> int:
    """
    Ask `questions` about the images and write the results.

    Everything that does not need the model is checked before the model is loaded.

    Args:
        options: the parsed options.
        names: files, folders and URLs.
        questions: each is the fields that it adds to a record.
        answer: see `Answer`.
        line: formats a record as a line of text.
        assumed: what a record of an earlier version, which lacks these fields, was asked.

    Returns:
        the exit code.
    """
    check_model(options.model)
    if process_count() > 1:
        if options.output is None:
            raise UsageError("`--output` is needed with several processes, because each prints only its share")
        check_name("--output", part_of(options.output, process_count()))
    images = find_images(names, options.recursive)
    if options.output is not None:
        check_settings(options.output, settings_of(options))
    done = [] if options.output is None else resume(options.output, images, collect=False)
    device = choose_device(options.device, options.dtype, options.quiet)
    processes = join_processes(device)
    if options.output is not None:
        settings = settings_of(options) | {"device": kind_of(device)}  # others round differently
        check_settings(options.output, settings)
        processes.wait()  # all have read the settings of an earlier run
        if processes.first:  # also fails before the work if the file is not writable
            done = resume(options.output, images)
            write_settings(options.output, settings)
        processes.wait()
        done = resume(options.output, images, collect=False)
    jobs = open_jobs(images, questions, [{**(assumed or {}), **record} for record in done])
    output = options.output
    results = Results(output if processes.count == 1 else part_of(output, processes.index), options.json, line)
    if jobs:
        run_jobs(options, device, processes, jobs, len(images), answer, results)
    processes.wait()
    if output is not None and processes.first:
        found = collect_parts(output, images)
        failed = results.failed if processes.count == 1 else sum("error" in record for record in found)
        if not options.quiet:
            counts = f"{len(images) - len(jobs)} skipped, {len(jobs) - failed} done, {failed} failed"
            print(f"images: {counts}", file=sys.stderr)
        print(for_stdout(str(output)))
    processes.wait()  # a launcher may stop the others when one process ends with an error
    return 1 if results.failed else 0


def settings_of(options: argparse.Namespace) -> Record:
    """The settings that the answers depend on, beside the questions."""
    model = "embedded" if options.model is None else options.model
    return {"model": model, "dtype": options.dtype, "max_new_tokens": options.max_new_tokens}


def run_jobs(
    options: argparse.Namespace,
    device: str,
    processes: Processes,
    jobs: list[Job],
    total: int,
    answer: Answer,
    results: Results,
) -> None:
    """Answer this process's share of the jobs batch by batch, with a progress bar if there are several images."""
    load_package(options.quiet)
    from tqdm import tqdm

    groups = list(processes.share(batches(jobs, options.batch_size)))
    count = sum(map(len, groups))
    if not groups:
        return
    with closing(loaded_batches(groups, options.max_pixels)) as loaded:
        first = next(loaded)
        pipe = None
        # If no image can be read, there is no need to load the model.
        if len(first[1]) < count or any(one.image is not None for one in first[1]):
            pipe = load_pipeline(options.model, options.dtype, device, options.quiet, "ShowoMMUPipeline")
        hidden = options.quiet or total == 1 or not on_terminal() or not processes.first
        done = total - len(jobs)
        long: list[str] = []
        with tqdm(total=done + count, initial=done, desc="reading", unit="image", disable=hidden) as bar:
            for questions, batch in chain([first], loaded):
                records = batch_records(pipe, questions, batch, answer)
                with bar.external_write_mode(file=sys.stdout):
                    results.put(records)
                bar.update(len(batch))
                long += [one.name for one in batch if one.image is not None and is_long(one.image)]
        if long and not options.quiet:
            message = "the model sees the square in the middle, which is less than half of"
            print(f"showo-hf: {message} {examples(long)}", file=sys.stderr)


def is_long(image: Image.Image) -> bool:
    """Whether the square in the middle, to which the processor crops, is less than half of an image."""
    return max(image.size) > 2 * min(image.size)


def batch_records(
    pipe: DiffusionPipeline | None, questions: list[Record], batch: list[LoadedImage], answer: Answer
) -> list[Record]:
    """The records of a batch: one per image and question, or one with the error of an image."""
    good = [one for one in batch if one.image is not None]
    try:
        answers = iter(answer(pipe, [one.image for one in good], questions) if good else [])
    except ValueError as error:  # for example a question longer than the context of the model
        raise UsageError(with_option_names(error)) from error
    records: list[Record] = []
    for one in batch:
        if one.image is None:
            records.append({"image": one.name, "error": one.problem})
        else:
            pairs = zip(questions, next(answers), strict=True)
            records += [{"image": one.name, **question, **found} for question, found in pairs]
    return records
