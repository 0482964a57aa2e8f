"""Files of `torch.save`, read without running any code in them and without more memory than their tensors take."""

import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from showo_hf.utils.messages import examples, printable

from .errors import ConversionError
from .held_tensors import HeldTensors
from .pickle_check import MAX_BYTES, PickleError, check_pickle


MAX_DIRECTORY = 2**21  # bytes of the list of an archive's parts; a part takes about 100

# Ends of an archive, see https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3.14 to 4.3.16.
END = struct.Struct("<4s4H2LH")
LOCATOR = struct.Struct("<4sLQL")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCAL_HEADER = struct.Struct("<4s22x2H")


class PickleFile(HeldTensors):
    """
    One file of `torch.save`, mapped into memory, so that tensors stay on disk until they are read.

    Only tensors and plain containers are accepted. A pickle that names anything else is refused before it runs.
    """

    def __init__(self, path: Path):
        self.path = path
        check_archive(path)
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # a damaged file fails in many ways
            raise ConversionError(f"'{path.name}' cannot be read: {first_sentence(error)}") from error
        self.tensors = flat_tensors(content, path.name)
        check_storages(self.tensors, path)
        self.names = list(self.tensors)


def first_sentence(error: Exception) -> str:
    """The part of torch's message that names the fault, without the advice to trust the file."""
    return printable(str(error).split("\n")[0].split(". ")[0])


def flat_tensors(content, file_name: str) -> dict[str, torch.Tensor]:
    """The tensors of a loaded file, also if they are inside one `state_dict`, `model` or `module`."""
    if isinstance(content, dict) and not any(isinstance(value, torch.Tensor) for value in content.values()):
        wrapped = [content[key] for key in ("state_dict", "model", "module") if isinstance(content.get(key), dict)]
        content = wrapped[0] if wrapped else content
    if not isinstance(content, dict):
        raise ConversionError(f"'{file_name}' must hold tensors by name, got a {type(content).__name__}")
    others = [
        f"{key!r:.80} ({type(value).__name__})"
        for key, value in content.items()
        if not (isinstance(value, torch.Tensor) and isinstance(key, str))
    ]
    if others or not content:
        raise ConversionError(
            f"'{file_name}' must only hold tensors by name, but also holds {examples(others) or 'nothing'}"
        )
    return {name: tensor.detach() for name, tensor in content.items()}  # a parameter may come with a gradient


def check_archive(path: Path):
    """
    Raise `ConversionError` unless a file is an archive as torch writes it, with a pickle that holds tensors alone.

    torch writes parts as they are. A compressed part of a few megabytes could unpack to any size.
    """
    try:
        with open(path, "rb") as file:
            check_ends(file, path)
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
            compressed = [one.filename for one in parts if one.file_size != one.compress_size or one.compress_type]
            if compressed:
                raise ConversionError(
                    f"'{path.name}' has compressed parts, which torch does not write: {examples(compressed)}"
                )
            # torch looks for the name in small and in capital letters.
            pickles = [one for one in parts if one.orig_filename.lower().endswith("data.pkl")]
            if len(pickles) != 1:
                raise ConversionError(f"'{path.name}' must have one part data.pkl, got {len(pickles)}")
            content = stored_bytes(file, pickles[0], path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"'{path.name}' is a damaged archive: {printable(error)}") from error
    try:
        check_pickle(content)
    except PickleError as error:
        raise ConversionError(
            f"'{path.name}' was refused: its pickle is damaged, or contains more than tensors. Nothing in it was run. "
            f"Found: {error}"
        ) from error


def check_ends(file: BinaryIO, path: Path):
    """
    Raise `ConversionError` unless an archive starts with its first part, and ends with the list of its parts.

    Python and torch read archives differently where the list of parts could be in several places: what is checked here
    would not be what torch reads.
    """
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(4)
    file.seek(max(0, size - END_64.size - LOCATOR.size - END.size))
    tail = file.read()
    if start != b"PK\x03\x04" or len(tail) < END.size or tail[-END.size :][:4] != b"PK\x05\x06":
        raise ConversionError(
            f"'{path.name}' cannot be read: it is cut off, or was not written by torch 1.6 or later, which can be mapped "
            "into memory"
        )
    *_, length, offset, comment = END.unpack(tail[-END.size :])
    end = size - END.size
    locator = tail[: -END.size][-LOCATOR.size :]
    if len(locator) == LOCATOR.size and locator[:4] == b"PK\x06\x07":
        end -= LOCATOR.size + END_64.size
        signature, *_, length, offset = END_64.unpack(tail[: END_64.size])
        if signature != b"PK\x06\x06" or LOCATOR.unpack(locator)[2] != end:
            raise ConversionError(f"'{path.name}' is a damaged archive: its end is not where it says")
    if comment or offset + length != end:
        raise ConversionError(f"'{path.name}' is a damaged archive: the list of its parts is not at its end")
    if length > MAX_DIRECTORY:
        raise ConversionError(
            f"'{path.name}' has a list of parts of {length:,} bytes, and at most {MAX_DIRECTORY:,} are read"
        )


def stored_bytes(file: BinaryIO, part: zipfile.ZipInfo, path: Path) -> bytes:
    """The content of a part that is not compressed. torch can leave its checksum out, which `zipfile` demands."""
    if part.file_size > MAX_BYTES:
        raise ConversionError(
            f"'{path.name}' has a pickle of {part.file_size:,} bytes, and at most {MAX_BYTES:,} are read"
        )
    file.seek(part.header_offset)
    signature, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ConversionError(f"'{path.name}' is a damaged archive: data.pkl is not where it says")
    file.seek(name + extra, 1)
    return file.read(part.file_size)


def check_storages(tensors: dict[str, torch.Tensor], path: Path):
    """Raise `ConversionError` unless the numbers of all tensors lie in the file."""
    for name, tensor in tensors.items():
        if why := why_not_plain(tensor):
            raise ConversionError(f"`{printable(name)}` in '{path.name}' cannot be read: {why}")
    planned = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    most = 2 * path.stat().st_size + 2**20  # tied weights stand in the file once
    if planned > most:
        raise ConversionError(
            f"the tensors of '{path.name}' take {planned:,} bytes, and the file has {path.stat().st_size:,}: many of them "
            "share their numbers"
        )


def why_not_plain(tensor: torch.Tensor) -> str | None:
    """Why the numbers of a tensor do not lie in the file, row by row or in another order; None if they do."""
    size, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > stored:
        return f"its shape {list(tensor.shape)} takes {size:,} bytes, and {stored:,} are stored"
    return None
