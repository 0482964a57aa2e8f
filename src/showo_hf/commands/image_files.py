"""The images that a command reads: files, folders and URLs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.argument_types import MAX_PIXELS, integer, quoted
from .errors import UsageError
from .texts import exists


if TYPE_CHECKING:
    from PIL import Image


#: The image files of a folder. Files named on the command line are read whatever their suffix.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")

UNKNOWN_FORMAT = "not an image in a known format"
#: How the files of all formats that are read begin.
SIGNATURES = (b"BM", b"GIF8", b"\xff\xd8", b"\x89PNG", b"II", b"MM", b"RIFF", *(b"P%d" % kind for kind in range(1, 8)))

MOST_PIXELS = 178_956_970  # Pillow's own limit


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Add `--max-pixels`, for every command that reads images."""
    parser.add_argument(
        "--max-pixels",
        type=integer(1, MOST_PIXELS),
        default=MAX_PIXELS,
        metavar="N",
        help=f"read image files of at most N pixels; raise it for files that you trust (default: {MAX_PIXELS})",
    )


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def is_single_image(names: list[str]) -> bool:
    """Whether `names` is one file or URL. A folder does not count, whatever it contains."""
    return len(names) == 1 and not (exists(Path(names[0])) and Path(names[0]).is_dir())


def find_images(names: Iterable[str], recursive: bool) -> list[str]:
    """
    List the images that files, folders and URLs stand for, without duplicates. Images of a folder are sorted by name.

    A name that is no image counts as an image that cannot be read, if there are others.

    Raises:
        UsageError: if none of the names exists or is an image, or a folder contains no images.
    """
    found: dict[str, None] = {}
    absent, others = [], []
    for name in names:
        path = Path(name)
        if is_url(name):
            found[name] = None
            continue
        if not (name and exists(path)):
            absent.append(name)
        elif path.is_dir():
            found.update(dict.fromkeys(images_in(path, recursive)))
            continue
        elif not may_be_image(path):
            others.append(name)
        found[str(path) if name else name] = None
    if absent and len(absent) == len(found):
        raise UsageError(
            f"an image must be a file, a folder or a URL, but {quoted(absent[0])} does not exist"
            + (f", nor do the {len(absent) - 1} others" if len(absent) > 1 else "")
        )
    if others and len(absent) + len(others) == len(found):
        raise UsageError(f"{quoted(others[0])} is {UNKNOWN_FORMAT}")
    return list(found)


def may_be_image(path: Path) -> bool:
    """Whether a file begins as an image does. What cannot be opened counts as one: why is said when it is read."""
    try:
        if not path.is_file():  # a pipe has no beginning to look at
            return True
        with open(path, "rb") as file:
            return file.read(8).startswith(SIGNATURES)
    except OSError:
        return True


def images_in(folder: Path, recursive: bool) -> list[str]:
    """List the images of a folder without hidden files. Raises `UsageError` if there are none."""
    try:
        files = [path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.is_file()]
    except OSError as error:
        raise UsageError(f"the folder {quoted(folder)} cannot be read: {error.strerror or error}") from error
    visible = [path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    images = [str(path) for path in visible if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        hint = "" if recursive else "; use --recursive to include its subfolders"
        raise UsageError(f"the folder {quoted(folder)} contains no images ({', '.join(IMAGE_SUFFIXES)}){hint}")
    return sorted(images)


@dataclass(frozen=True)
class LoadedImage:
    """An image, or None and the reason why it cannot be read."""

    name: str
    image: Image.Image | None
    problem: str = ""


def problem_of(error: BaseException) -> str:
    """Why an image cannot be read, in one line. If it is too large, the option that reads it is named."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return UNKNOWN_FORMAT
    reason = f"{' '.join(str(error).split()):.200}" or type(error).__name__
    return reason + limit_hint(error)


def limit_hint(error: BaseException | None) -> str:
    """The end of a message about an image that is too large: the option that reads it. Empty for other errors."""
    from ..processing.image_reader import TooLarge

    return "; `--max-pixels` raises the limit" if isinstance(error, TooLarge) else ""


def load(name: str, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Read one image. Problems are returned, not raised."""
    from ..processing.images import load_image

    if not is_url(name) and not (exists(Path(name)) and Path(name).is_file()):
        return LoadedImage(name, None, "no such file")
    try:
        return LoadedImage(name, load_image(name if is_url(name) else Path(name), max_pixels=max_pixels))
    except (ValueError, TypeError) as error:
        # Report the cause: the message of the error itself names an argument that the user does not know.
        return LoadedImage(name, None, problem_of(error.__cause__ or error))
