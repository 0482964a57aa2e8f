"""Computes image tokens of a data set and stores them; see `token_shards.py` for the format."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import torch

from ...processing.image_reader import MAX_PIXELS
from ...utils.atomic_folder import locked
from .examples import BrokenExample, BrokenExamples, Example
from .sources import DataSource, OpenedSource, open_source
from .streams import Row
from .token_shards import (
    FORMAT,
    INDEX,
    StoredTokens,
    checksum_of,
    delete_leftovers,
    image_parts,
    image_tokenizer_checksum,
    read_index,
    shard_record,
    write_index,
    write_shard,
)


#: Loads the image tokenizer, in eval mode on its device, and its image processor. It is called in each process, with the
#: number of the process.
Load = Callable[[int], tuple[torch.nn.Module, Any]]
PREPROCESSING = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_convert_rgb",
)  # fmt: skip


@dataclass(frozen=True)
class TokenizeOptions:
    """
    What is stored.

    Args:
        source: the data: images with texts, or conversations.
        shard_size: rows of a shard. A source without random access gives one shard for each of its own.
        batch_size: images that the image tokenizer encodes at once.
        flip: store the mirrored image as well. Training draws one of the two.
    """

    source: DataSource
    shard_size: int = 10_000
    batch_size: int = 16
    flip: bool = False


def store_tokens(
    options: TokenizeOptions,
    output: str | Path,
    load: Load,
    *,
    num_proc: int = 1,
    max_broken: int = 100,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> StoredTokens:
    """
    Compute and store the image tokens of a data set. Run again after an interruption, it makes what is missing or damaged.

    Args:
        options: see [`TokenizeOptions`].
        output: the folder. It is created.
        load: see `Load`.
        num_proc: processes. With more than one, `load` must be picklable.
        max_broken: number of unreadable samples above which it ends with an error.
        on_shard: called with the number of shards that are done, and of all.

    Raises:
        ValueError: if the source cannot be opened, `output` holds tokens of other options, or too many samples cannot be
            read.
        BlockingIOError: if another process writes to `output`.
    """
    output = Path(output)
    opened = open_source(options.source, "mmu")
    work = Work(options, opened, output, *load(0))
    index = work.index
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        check_resumable(output, index)
        delete_leftovers(output)
        write_index(output, index)  # without shards: the folder is not complete
        names = [f"shard-{number:05d}" for number in range(work.num_shards)]
        records = {name: record for name in names if (record := shard_record(output, name, checksum_of(index)))}
        broken = BrokenExamples(max_broken)
        for record in records.values():
            for key, reason in record["broken"].items():
                broken.add(key, reason)
        on_shard(len(records), len(names))
        open_numbers = [number for number, name in enumerate(names) if name not in records]
        with made_shards(work, load, open_numbers, num_proc) as made:
            for record in made:
                records[record["name"]] = record
                for key, reason in record["broken"].items():
                    broken.add(key, reason)
                on_shard(len(records), len(names))
        write_index(output, index | {"shards": [records[name] for name in names]})
    return StoredTokens(output)


def check_resumable(output: Path, index: dict[str, Any]) -> None:
    """Raise `ValueError` if `output` holds something else than tokens of the same options. The difference is named."""
    if not (output / INDEX).exists():
        if any(file.name[0] != "." for file in output.iterdir()):
            raise ValueError(
                f"`output` must be a new folder, or one that this command wrote; '{output}' holds other files."
            )
        return
    try:
        found = read_index(output)
    except ValueError:  # damaged: it is written anew, and each shard names the options that it was made with
        return
    for name, value in index.items():
        if found.get(name) != value:
            raise ValueError(
                f"`output` '{output}' holds tokens of other options: {name} was {found.get(name)!r:.200}, and is now "
                f"{value!r:.200}. Choose another folder."
            )


class Work:
    """Makes shards in one process."""

    def __init__(
        self, options: TokenizeOptions, opened: OpenedSource, output: Path, tokenizer: torch.nn.Module, processor: Any
    ):
        self.options, self.opened, self.output = options, opened, output
        self.tokenizer, self.processor = tokenizer, processor
        size = processor.crop_size
        factor = tokenizer.config.downsampling
        if size["height"] % factor or size["width"] % factor:
            raise ValueError(f"`size` must be a multiple of {factor}, got {size['height']}x{size['width']}.")
        self.grid = [size["height"] // factor, size["width"] // factor]
        self.dtype = "uint16" if tokenizer.config.codebook_size <= 2**16 else "int32"
        rows = opened.size
        self.index = self.new_index()
        self.num_shards = rows if opened.table is None else -(-rows // options.shard_size)

    def new_index(self) -> dict[str, Any]:
        """The index without its shards."""
        conversations = {"messages", "conversations"} & set(self.opened.columns)
        processor = self.processor.to_dict()
        return {
            "format": FORMAT,
            "source": plain_source(self.options.source),
            "source_size": self.opened.size,
            "columns": ["messages"] if conversations else ["text", "image_tokens"],
            "shard_size": self.options.shard_size,
            "batch_size": self.options.batch_size,
            "variants": 2 if self.options.flip else 1,
            "grid": self.grid,
            "dtype": self.dtype,
            "image_tokenizer": image_tokenizer_checksum(self.tokenizer),
            "preprocessing": {name: plain(processor[name]) for name in PREPROCESSING if name in processor},
        }

    def make_shard(self, number: int) -> dict[str, Any]:
        """Make and write a shard, and give its record."""
        rows: list[dict[str, Any]] = []
        broken: dict[str, str] = {}
        grids: list[torch.Tensor] = []
        images: list[Any] = []  # of the next batch
        for key, row in self.rows_of(number):
            try:
                example = self.opened.example(row, key, 0)
                check_grids(example, self.grid)
            except BrokenExample as error:
                broken[key] = str(error)
                continue
            stored, of_row = self.stored_row(example, len(grids) + len(images))
            rows.append(stored)
            images += of_row
            while len(images) >= self.options.batch_size:
                grids += self.encode(images[: self.options.batch_size])
                images = images[self.options.batch_size :]
        if images:
            grids += self.encode(images)
        name = f"shard-{number:05d}"
        return write_shard(self.output, name, self.index, grids, rows, broken)

    def rows_of(self, number: int) -> Iterator[tuple[str, Row | BrokenExample]]:
        """The rows of a shard with their names, or why one cannot be read."""
        opened = self.opened
        if opened.table is None:
            assert opened.stream is not None
            shard = opened.stream.shard(num_shards=opened.size, index=number)
            for index, row in enumerate(shard):
                yield opened.key(row, f"{opened.name} shard {number} row {index}"), row
        else:
            start = number * self.options.shard_size
            for index in range(start, min(start + self.options.shard_size, len(opened.table))):
                yield opened.row(index)

    def stored_row(self, example: Example, first: int) -> tuple[dict[str, Any], list[Any]]:
        """What is stored for an example whose images start at `first`, and its images with their variants."""
        row: dict[str, Any] = {"key": example.key}
        images: list[Any] = []

        def number_of(image: Any) -> int:
            number = first + len(images)
            images.append(image)
            if self.options.flip:
                images.append(mirrored(image))
            return number

        if example.messages is None:
            image = example.image if example.image_tokens is None else example.image_tokens
            return row | {"text": example.text, "image": number_of(image)}, images
        for part in image_parts(example.messages):
            part["image"] = number_of(part["image"])
        return row | {"messages": example.messages}, images

    @torch.inference_mode()
    def encode(self, images: list[Any]) -> list[torch.Tensor]:
        """The grids of images, int64 (h, w). Images that are grids stay as they are."""
        pictures = [image for image in images if not torch.is_tensor(image)]
        encoded = iter(())
        if pictures:
            pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
            device = next(self.tokenizer.parameters()).device
            encoded = iter(self.tokenizer.encode(pixels.to(device)).image_tokens.cpu())
        return [image if torch.is_tensor(image) else next(encoded) for image in images]


def check_grids(example: Example, grid: list[int]) -> None:
    """Raise `BrokenExample` if the example has token grids of another size."""
    images = (
        [example.image_tokens] if example.messages is None else [p["image"] for p in image_parts(example.messages)]
    )
    for image in images:
        if torch.is_tensor(image) and list(image.shape) != grid:
            raise BrokenExample(f"its image tokens must be of shape {tuple(grid)}, got {tuple(image.shape)}")


def mirrored(image: Any) -> Any:
    """An image from right to left. A token grid cannot be mirrored, and stays as it is."""
    from PIL import ImageOps

    return image if torch.is_tensor(image) else ImageOps.mirror(image)


def plain_source(source: DataSource) -> dict[str, Any]:
    """What the index says of the source. Indexes of earlier versions have no `max_pixels`, which was the default."""
    fields = asdict(source)
    if source.max_pixels == MAX_PIXELS:
        del fields["max_pixels"]
    return {name: value for name, value in fields.items() if name != "weight"}


def plain(value: Any) -> Any:
    """A setting of an image processor as JSON has it."""
    if hasattr(value, "items"):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value if isinstance(value, (bool, float, str, type(None))) else int(value)


# Processes


@contextmanager
def made_shards(work: Work, load: Load, numbers: list[int], num_proc: int) -> Iterator[Iterator[dict[str, Any]]]:
    """The records of shards as they are made, by this process or by `num_proc` others."""
    num_proc = min(num_proc, len(numbers))
    if num_proc <= 1:
        yield map(work.make_shard, numbers)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads and the accelerator do not survive a fork
    with ExitStack() as stack:
        pool = ProcessPoolExecutor(
            num_proc,
            context,
            initializer=start_process,
            initargs=(
                work.options,
                work.output,
                load,
                context.Value("i", 0),
                max(1, (os.cpu_count() or 1) // num_proc),
            ),
        )
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        yield finished(pool, numbers)


def finished(pool: ProcessPoolExecutor, numbers: list[int]) -> Iterator[dict[str, Any]]:
    waiting = {pool.submit(make_in_process, number) for number in numbers}
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


WORK: list[Work] = []  # of a process that `start_process` started


def start_process(options: TokenizeOptions, output: Path, load: Load, started: Any, threads: int) -> None:
    """Open the data and load the image tokenizer in a new process. The process ends with its parent, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait_for([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with started.get_lock():
        started.value += 1
        number = started.value  # the first process, which loaded the image tokenizer already, has number 0
    WORK.append(Work(options, open_source(options.source, "mmu"), output, *load(number)))


def make_in_process(number: int) -> dict[str, Any]:
    return WORK[0].make_shard(number)
