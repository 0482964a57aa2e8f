"""Where training data comes from: folders of images, tables, texts, tars, conversations, the Hub, and stored tokens."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub.constants import HF_HUB_CACHE

from ...processing.image_reader import MAX_PIXELS
from ...utils.argument_types import HUB_NAME
from ...utils.validation import is_integer, is_number
from .conversations import llava_messages, ready_messages, token_grid, with_images
from .examples import BrokenExample, Example, check_unicode, decode_image
from .json_table import JoinedTable, JsonTable, Table
from .order import stable_hash
from .streams import Row
from .token_shards import INDEX, StoredTokens


TASKS = ("t2i", "lm", "mmu", "mixed", "image")
#: Builders of `datasets` that read data and nothing else.
HUB_BUILDERS = ("imagefolder", "parquet", "json", "csv", "text", "webdataset", "arrow")
MOST_COMPARED = 100_000
FIRST_ROWS = 100  # of a table, which tell its columns
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text", ".tar": "webdataset"}


@dataclass(frozen=True)
class DataSource:
    """
    One source of a task.

    Args:
        path: a file, a folder, or the name of a data set on the Hub; see [`open_source`].
        split: the split of a folder with splits, or of a data set on the Hub.
        revision: the commit, branch or tag of a data set on the Hub. None reads its main branch.
        weight: share of the task's rows, relative to the other sources of the task.
        text_column: column of the text.
        image_column: column of the image.
        streaming: read from front to back, without random access. None reads tars and the Hub this way, and nothing else.
        image_folder: folder where the images named in a table lie. None looks beside the file, then in `images` there.
            Names that lead out of it are not read.
        max_pixels: image files with more pixels are broken samples.

    Raises:
        ValueError: for a value of another type, and a `weight` or `max_pixels` that is not positive.
    """

    path: str
    split: str = "train"
    weight: float = 1.0
    text_column: str = "text"
    image_column: str = "image"
    streaming: bool | None = None
    image_folder: str | None = None
    revision: str | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        for name in ("path", "split", "text_column", "image_column", "image_folder", "revision"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in ("image_folder", "revision")):
                raise ValueError(f"`{name}` must be a text, got {value!r}.")
        if self.streaming is not None and not isinstance(self.streaming, bool):
            raise ValueError(f"`streaming` must be true or false, got {self.streaming!r}.")
        if not is_number(self.weight) or not self.weight > 0 or self.weight == float("inf"):
            raise ValueError(f"`weight` must be a positive number, got {self.weight!r}.")
        if not is_integer(self.max_pixels) or self.max_pixels < 1:
            raise ValueError(f"`max_pixels` must be a positive integer, got {self.max_pixels!r}.")


@dataclass
class OpenedSource:
    """
    An opened source: rows in `table` for random access, or in `stream`.

    Args:
        source: what was opened.
        task: the task that reads it.
        columns: names of the columns.
        table: the rows. `table[i]` is a dictionary.
        stream: the rows, as shards.
        folders: where images named by relative paths lie. The first that has the file counts.
        class_names: names of the values of the column `label`, for a folder of classes.
    """

    source: DataSource
    task: str
    columns: list[str]
    table: Table | None = None
    stream: datasets.IterableDataset | None = None
    folders: list[Path] = field(default_factory=list)
    class_names: list[str] | None = None

    @property
    def size(self) -> int:
        """Number of rows with random access, or of shards."""
        return self.stream.num_shards if self.table is None else len(self.table)

    @property
    def name(self) -> str:
        return self.source.path

    def key(self, row: Row, place: str) -> str:
        """A name for a row: its file, else its place."""
        image = row.get(self.source.image_column)
        image = image.get("path") if isinstance(image, dict) else image
        named = row.get("key") or (image if isinstance(image, str) and len(image) < 300 else None)
        return f"{place} ({Path(str(named)).name})" if named else place

    def row(self, index: int) -> tuple[str, Row | BrokenExample]:
        """A name for a row with random access, and the row, or why it cannot be read."""
        assert self.table is not None
        place = f"{self.name} row {index}"
        try:
            row = self.table[index]
        except BrokenExample as error:
            return place, error
        return self.key(row, place), row

    def example(self, row: Row | BrokenExample, key: str, noise_seed: int) -> Example:
        """
        The [`Example`] of a row. `BrokenExample` if the row or an image cannot be read, or the row has not what the task
        needs.
        """
        if isinstance(row, BrokenExample):
            raise row
        found = Example(key, noise_seed, **self.content(row, partial(self.load, noise_seed=noise_seed)))
        if found.messages is None and self.task != "image":
            texts = [found.text] if isinstance(found.text, str) else found.text
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                raise BrokenExample(f"the text must be a string or a list of strings, got {found.text!r:.80}")
            check_unicode(texts)
        return found

    def content(self, row: Row, load: Callable[[Any], Any]) -> dict[str, Any]:
        """The fields of the example of a row. `load` decodes its images."""
        source = self.source
        image = row.get(source.image_column)
        if self.task == "image":
            return {"image": load(image)}
        tokens = row.get("image_tokens")
        if self.task in ("mmu", "mixed") and row.get("messages") is not None:
            images = row.get("images") if row.get("images") is not None else tokens if image is None else image
            return {"messages": with_images(ready_messages(row["messages"], images), load)}
        if self.task in ("mmu", "mixed") and row.get("conversations") is not None:
            image = tokens if image is None else image
            return {"messages": with_images(llava_messages(row["conversations"], image), load)}
        if self.task == "mixed":
            raise BrokenExample("there is no conversation")
        text = self.text_of(row)
        if self.task == "lm":
            return {"text": text}
        if tokens is not None:
            return {"text": text, "image_tokens": load(tokens)}
        return {"text": text, "image": load(image)}

    def text_of(self, row: Row) -> Any:
        """The text of a row, which may be in the JSON member of a tar, or the name of a class."""
        if self.class_names is not None and row.get(self.source.text_column) is None:
            label, last = row["label"], len(self.class_names) - 1
            if not is_integer(label) or not 0 <= label <= last:
                raise BrokenExample(f"the label must be an integer from 0 to {last}, got {label!r:.80}")
            return self.class_names[label].replace("_", " ")
        if self.source.text_column not in self.columns and isinstance(row.get("json"), dict):
            return row["json"].get(self.source.text_column)
        return row.get(self.source.text_column)

    def load(self, image: Any, noise_seed: int) -> Any:
        """An image or token grid of a row, decoded. Of stored variants, `noise_seed` draws one."""
        if torch.is_tensor(image):
            return image[stable_hash(noise_seed, "variant") % len(image)]  # (h, w)
        if isinstance(image, list):
            return token_grid(image)
        named = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else image
        if isinstance(named, str):
            allowed = [folder for folder in self.folders if is_inside(named, folder)]
            if not allowed:
                raise BrokenExample(f"the image must lie in the folder of the data: {named[:100]}")
            found = [folder for folder in allowed if len(named) < 1000 and (folder / named).is_file()]
            return decode_image(named, (found or allowed)[0], self.source.max_pixels)
        return decode_image(image, max_pixels=self.source.max_pixels)


def is_inside(name: str, folder: Path) -> bool:
    """
    Whether a file that a data set names, relative to a folder, lies in it.

    Data of strangers must not read other files of this machine. Links inside of the folder are its owner's.
    """
    path = Path(os.path.abspath(folder / name))
    return any(path.is_relative_to(whole) for whole in (os.path.abspath(folder), os.path.realpath(folder)))


def open_source(source: DataSource, task: str, tokenizer_checksum: str | None = None) -> OpenedSource:
    """
    Open a source for a task. Nothing in a data set runs code.

    Args:
        source: its `path` is one of

            - a folder of images with `metadata.jsonl` (`file_name`, `text`), or `metadata.csv` or `.parquet`. In JSON, the
              text may be a list of alternatives.
            - a folder of images in one sub-folder for each class. The text is the class name.
            - a `.parquet`, `.jsonl` or `.json` file, or a folder of them. Rows with `conversations` are read as LLaVA's,
              rows with `messages` as the chat template's, for "mmu" and "mixed".
            - a `.txt` file or a folder of them, one text a line, for "lm". Empty lines are left out.
            - a `.tar` file or a folder of them, in the WebDataset format: an image with a `.txt`, or a `.json` that has
              `text_column`.
            - a folder of stored tokens, written by `showo-hf tokenize`.
            - `owner/name`: a data set on the Hub.
            - a folder of images alone, for "image".
        task: "t2i", "lm", "mmu", "mixed", or "image" for images without texts.
        tokenizer_checksum: what [`image_tokenizer_checksum`] gives for the model. Stored tokens are compared with it.

    Raises:
        FileNotFoundError: if `path` is neither a file, a folder, nor a name on the Hub.
        ValueError: if the data has another form, or lacks a column that the task needs. The message names the columns.
    """
    if task not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}.")
    path = Path(source.path)
    if path.is_dir() or path.is_file():
        if source.revision is not None:
            raise ValueError(f"`revision` is for data sets on the Hub, but '{path}' is on this machine.")
        opened = open_local(source, task, path, tokenizer_checksum)
    elif HUB_NAME.fullmatch(source.path):
        opened = open_hub(source, task)
    else:
        raise FileNotFoundError(f"`path` must be a file, a folder, or a data set on the Hub, got '{source.path}'.")
    check_columns(opened)
    return opened


def open_local(source: DataSource, task: str, path: Path, tokenizer_checksum: str | None) -> OpenedSource:
    if path.is_dir() and (path / INDEX).is_file():
        stored = StoredTokens(path, tokenizer_checksum)
        return OpenedSource(source, task, stored.columns, stored)
    own = None if source.image_folder is None else Path(source.image_folder)
    for folder in (path, path / source.split):
        if (folder / METADATA[0]).is_file() and not source.streaming:
            # As datasets' imagefolder reads it, which cannot mix texts and lists of texts in one column.
            table = JsonTable(folder / METADATA[0])
            columns = [{"file_name": source.image_column}.get(name, name) for name in columns_of(table)]
            return OpenedSource(
                source, task, columns, FolderTable(table, source.image_column), folders=[own or folder]
            )
    kind, files = files_of(path, needs_text=task != "image")
    beside = path if path.is_dir() else path.parent
    folders = [beside, beside / "images"] if own is None else [own]
    if kind == "json" and not source.streaming:
        tables = [JsonTable(file) for file in files]
        return OpenedSource(source, task, columns_of(tables[0]), JoinedTable(tables), folders=folders)
    streaming = kind == "webdataset" if source.streaming is None else source.streaming
    if kind == "webdataset" and not streaming:
        raise ValueError(f"`streaming` must not be False for tars, which have no random access: '{path}'.")
    options: dict[str, Any] = {"data_files": {source.split: list(map(str, files))}}
    if kind == "imagefolder":
        options = {"data_dir": str(path)}
        if not has_splits(path):  # else datasets takes what has "train" or "test" in its name for the whole split
            options["data_files"] = {source.split: ["**"]}
    return open_datasets(source, task, kind, streaming, options, folders)


def has_splits(path: Path) -> bool:
    """Whether a folder has one sub-folder for each split, such as `train` and `test`, and no others."""
    names = [folder.name for folder in path.iterdir() if folder.is_dir() and folder.name[0] != "."]
    return bool(names) and all(name in SPLITS for name in names)


def columns_of(rows: Table) -> list[str]:
    """The names in the first rows. Rows that are broken or lack something are counted later, when they are read."""
    names: dict[str, None] = {}
    for index in range(min(len(rows), FIRST_ROWS)):
        try:
            names |= dict.fromkeys(rows[index])
        except BrokenExample:
            continue
    return list(names)


def files_of(path: Path, needs_text: bool = True) -> tuple[str, list[Path]]:
    """The builder of `datasets` for a path, and its files. `ValueError` if there are none, or of several kinds."""
    if path.is_dir() and any(True for name in METADATA for _ in path.rglob(name)):
        return "imagefolder", []
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    visible = [file for file in files if not any(part[0] == "." for part in file.relative_to(path.parent).parts)]
    kinds: dict[str, list[Path]] = {}
    for file in visible:
        if file.suffix.lower() in SUFFIXES:
            kinds.setdefault(SUFFIXES[file.suffix.lower()], []).append(file)
    if len(kinds) > 1:
        raise ValueError(f"`path` must hold files of one kind, but '{path}' holds {', '.join(sorted(kinds))}.")
    if kinds:
        return next(iter(kinds.items()))
    if path.is_dir() and any(file.suffix.lower() in IMAGE_SUFFIXES for file in visible):
        if needs_text and all(file.parent == path for file in visible):
            raise ValueError(f"`path` must have a {METADATA[0]} with the texts of its images, but '{path}' has none.")
        return "imagefolder", []
    raise ValueError(
        f"`path` must hold {', '.join(SUFFIXES)} files, images with {METADATA[0]}, or images in one folder for each "
        f"class; '{path}' holds none of them."
    )


class FolderTable:
    """The rows of a `metadata.jsonl`, with the file as the image."""

    def __init__(self, rows: JsonTable, image_column: str):
        self.rows, self.image_column = rows, image_column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        if "file_name" in row:
            row[self.image_column] = row.pop("file_name")
        return row


def unused_images(opened: OpenedSource) -> list[str]:
    """
    The images of a folder that its `metadata.jsonl` does not name, so that no training sees them, as paths in the folder.

    Empty for other sources, and for more than `MOST_COMPARED` rows, which would take long.
    """
    if not isinstance(opened.table, FolderTable) or opened.source.image_folder or opened.size > MOST_COMPARED:
        return []
    (folder,) = opened.folders
    named = set()
    for index in range(opened.size):
        try:
            named.add(os.path.normpath(str(opened.table[index].get(opened.source.image_column))))
        except ValueError:  # a broken row, which the training reports
            continue
    paths = (file.relative_to(folder) for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    visible = {str(path) for path in paths if not any(part[0] == "." for part in path.parts)}
    return sorted(visible - named)


def open_hub(source: DataSource, task: str) -> OpenedSource:
    """Open a data set on the Hub in streaming. `ValueError` if its files are read by another builder than the plain ones."""
    try:
        builder = datasets.load_dataset_builder(source.path, revision=source.revision)
    except Exception as error:  # of huggingface_hub, httpx, fsspec and datasets
        raise ValueError(
            f"`path` must be a folder or a data set on the Hub; '{source.path}' cannot be opened: {error}"
        ) from error
    if builder.name not in HUB_BUILDERS and builder.info.builder_name not in HUB_BUILDERS:
        raise ValueError(f"`path` must hold {', '.join(HUB_BUILDERS)}; '{source.path}' is of kind {builder.name}.")
    folders = [Path(HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)]  # where `datasets` keeps what it downloads
    return open_datasets(
        source, task, source.path, source.streaming is not False, {"revision": source.revision}, folders
    )


def open_datasets(
    source: DataSource, task: str, kind: str, streaming: bool, options: dict[str, Any], folders: list[Path]
) -> OpenedSource:
    """Open with a builder of `datasets`, with images not decoded: we decode them, and count the broken ones."""
    hidden = datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(kind, split=source.split, streaming=streaming, **options)
        if kind == "text":
            loaded = loaded.filter(has_text, input_columns="text")
    except Exception as error:  # datasets raises the errors of all its readers
        raise ValueError(f"`path` '{source.path}' cannot be read as {kind}: {error.__cause__ or error}") from error
    finally:
        if not hidden:
            datasets.enable_progress_bars()
    features = loaded.features or dict.fromkeys(
        next(iter(loaded))
    )  # a stream of JSON has no features before it is read
    class_names = None
    renamed = None
    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
            renamed = name
        if name == "label" and isinstance(feature, datasets.ClassLabel) and source.text_column not in features:
            class_names = feature.names
    columns = list(features)
    if kind == "webdataset":
        if renamed is not None and source.image_column not in columns:
            loaded = loaded.rename_column(renamed, source.image_column)
            columns[columns.index(renamed)] = source.image_column
        if source.text_column not in columns and "txt" in columns:
            loaded = loaded.rename_column("txt", source.text_column)
            columns[columns.index("txt")] = source.text_column
    opened = OpenedSource(source, task, columns, folders=folders, class_names=class_names)
    if streaming:
        opened.stream = loaded
    else:
        opened.table = loaded
    return opened


def has_text(text: str) -> bool:
    return bool(text.strip())


def check_columns(opened: OpenedSource) -> None:
    """Raise `ValueError` unless the columns that the task needs are there."""
    source, columns = opened.source, set(opened.columns)
    if opened.task in ("mmu", "mixed") and columns & {"messages", "conversations"}:
        return
    images = {source.image_column} if opened.task == "image" else {source.image_column, "image_tokens"}
    has_text = source.text_column in columns or opened.class_names is not None or "json" in columns
    if opened.task == "mixed":
        missing, option = "messages", None
    elif opened.task != "image" and not has_text:
        missing, option = source.text_column, "text_column"
    elif opened.task != "lm" and not columns & images:
        missing, option = source.image_column, "image_column"
    else:
        return
    hint = f" `{option}` names another one." if option else ""
    raise ValueError(
        f"`path` '{source.path}' must have a column '{missing}' for {opened.task}, but its columns are "
        f"{', '.join(sorted(columns))}.{hint}"
    )
