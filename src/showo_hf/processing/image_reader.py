"""
Image files of strangers: size, format and structure are checked before a pixel is decoded.

Pillow reads a file's metadata and may start decoders before its caller knows the size. So a file is first reduced to
what its pixels need: metadata, further frames and pages are left out. Only then Pillow opens it.
"""

import io
import os
import re
import struct
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..utils.argument_types import MAX_PIXELS
from ..utils.validation import check_count


#: The formats that are read. None of them starts another program, as EPS does. AVIF is not among them: its decoder
#: takes the size from the compressed stream, which may be any, and not from the header.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_BYTES_PER_PIXEL = 8  # four channels of 16 bits without compression
SPARE_BYTES = 2**20  # headers and metadata of small images
#: Encoders write about 10 scans of a progressive JPEG. Each costs a pass over the whole image.
MAX_SCANS = 40
#: Parts of a file, such as segments, that Python code walks over.
MAX_PARTS = 100_000
MAX_READS = 400_000
#: What Pillow's decoders in C read. libtiff's others are not bounded in memory (LZMA) or in work (JPEG).
TIFF_COMPRESSIONS = {
    1: "none",
    2: "CCITT",
    3: "G3",
    4: "G4",
    5: "LZW",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
}
#: The tags that the pixels of a TIFF file need.
TIFF_TAGS = (
    *(254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(338, 339),
)
ORIENTATION = 0x0112
EXIF_HEAD = b"Exif\0\0"
#: The first byte after 0xFF of a JPEG marker that is none of the compressed data: not a stuffed zero, no restart, no fill.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class TooLarge(ValueError):
    """An image file is larger than `max_pixels` allows."""


class TooManyPixels(TooLarge):
    """An image file has more pixels than are read."""


class Reduced(NamedTuple):
    """An image file without what its pixels do not need, and the EXIF orientation, 1 to 8."""

    content: bytes
    orientation: int


class CountedFile(io.BytesIO):
    """A file in memory that stops a reader which takes it in too many small pieces, and so works too long."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise ValueError("its parts are too many, or too small")
        return super().read(size)


def read_image_file(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image file that may come from a stranger. Raises as [`read_image_content`], and `OSError`."""
    path = Path(path)
    if not path.is_file():  # also a pipe or a device, which may never end
        raise FileNotFoundError("no such file")
    size = path.stat().st_size
    check_file_size(size, max_pixels)
    with open(path, "rb") as file:
        return read_image_content(file.read(size), max_pixels)


def read_image_content(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Decode an image file that may come from a stranger.

    Of an animation or several pages, the first is read. The EXIF orientation is applied, other metadata is left out.

    Args:
        content: the bytes of a file in one of the `FORMATS`.
        max_pixels: images with more pixels are refused before they are decoded. Pillow has a limit of its own,
            `PIL.Image.MAX_IMAGE_PIXELS`, of which a file can have twice as many.

    Returns:
        the image, in the mode of the file.

    Raises:
        TooManyPixels: if the image has too many pixels. It is a TooLarge.
        TooLarge: if the file is larger than an image of `max_pixels` needs. It is a ValueError.
        ValueError: if the file has too many scans or parts, or a kind of compression that is not read; if it is
            broken; or if `max_pixels` is no positive integer.
        PIL.UnidentifiedImageError: if the file is in none of the `FORMATS`.
    """
    check_file_size(len(content), max_pixels)
    reduced = reduce_file(content)
    Image.init()
    try:
        image = Image.open(CountedFile(reduced.content), formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise TooManyPixels(f"its pixels are more than the {limit:,} that are read") from error
    check_pixels(image.width, image.height, max_pixels)
    image.load()
    # Pillow keeps EXIF of PNG and WebP files as bytes, and does not parse them unless it is asked.
    orientation = reduced.orientation if reduced.orientation != 1 else exif_orientation(image.info.get("exif", b""))
    method = TRANSPOSED.get(orientation)
    return image if method is None else image.transpose(method)


def max_file_size(max_pixels: int) -> int:
    """The largest file, in bytes, that an image of `max_pixels` needs."""
    return MAX_BYTES_PER_PIXEL * max_pixels + SPARE_BYTES


def check_file_size(size: int, max_pixels: int) -> None:
    check_count("max_pixels", max_pixels)
    if size > max_file_size(max_pixels):
        raise TooLarge(f"its {size:,} bytes are more than the {max_file_size(max_pixels):,} that are read")


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixels(f"its {width}x{height} pixels are more than the {max_pixels:,} that are read")


def reduce_file(content: bytes) -> Reduced:
    """Leave out what the pixels of a file do not need. Raises as [`read_image_content`]."""
    try:
        if content.startswith(b"\xff\xd8\xff"):
            return reduce_jpeg(content)
        if content.startswith((b"GIF87a", b"GIF89a")):
            return reduce_gif(content)
        if content.startswith((b"II", b"MM")):
            return reduce_tiff(content)
    except (IndexError, struct.error) as error:
        raise ValueError("it is incomplete") from error
    if content.startswith((b"P1", b"P2", b"P3")):
        raise ValueError("PPM files with numbers as text are not read")
    return Reduced(content, 1)


def reduce_jpeg(content: bytes) -> Reduced:
    """
    Keep the tables, the JFIF and Adobe segments and the compressed data of a JPEG file.

    EXIF, MPF and colour profiles go: a few kilobytes of them can ask for gigabytes.
    """
    kept, orientation, position = [content[:2]], 1, 2
    for _ in range(MAX_PARTS):
        if content[position] != 0xFF:
            raise ValueError("a segment of the JPEG file does not begin with a marker")
        marker = content[position + 1]
        if marker == 0xFF:  # fill bytes
            position += 1
            continue
        if marker == 0xDA:
            break
        end = position + 2 + struct.unpack_from(">H", content, position + 2)[0]
        if marker == 0xE1 and content.startswith(EXIF_HEAD, position + 4) and orientation == 1:
            orientation = exif_orientation(content[position + 4 : end])
        if marker not in range(0xE1, 0xEE) and marker not in (0xEF, 0xFE):
            kept.append(content[position:end])
        position = end
    else:
        raise ValueError(f"the JPEG file has more than {MAX_PARTS:,} segments")
    scans = 0
    for found in JPEG_MARKER.finditer(content, position):
        marker = content[found.start() + 1]
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise ValueError(f"the JPEG file has more than the {MAX_SCANS} scans that are read")
    return Reduced(b"".join([*kept, content[position:]]), orientation)


def reduce_gif(content: bytes) -> Reduced:
    """Keep the first frame of a GIF file and its transparency. Comments and what follows the frame go."""
    flags = content[10]
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    head, control = content[:position], b""
    for _ in range(MAX_PARTS):
        if content[position] == 0x2C:
            break
        if content[position] != 0x21:
            raise ValueError("the GIF file has no frame")
        start, position = position, position + 2
        while content[position]:
            position += content[position] + 1
            if position - start > SPARE_BYTES:
                raise ValueError("the GIF file has metadata that is too large")
        position += 1
        if content[start + 1] == 0xF9 and position - start == 8:
            # Without the disposal method: it allocates a second image.
            control = content[start : start + 3] + bytes([content[start + 3] & 1]) + content[start + 4 : position]
    else:
        raise ValueError(f"the GIF file has more than {MAX_PARTS:,} extensions")
    return Reduced(head + control + content[position:], 1)


def reduce_tiff(content: bytes) -> Reduced:
    """Give a TIFF file a directory with nothing but the tags of its first page that its pixels need."""
    order = "<" if content.startswith(b"II") else ">"
    magic, offset = struct.unpack_from(order + "HL", content, 2)
    if magic != 42:
        raise ValueError("BigTIFF files are not read")
    entries = read_directory(content, order, offset)
    compression = tag_value(entries, order, 259)
    if compression not in TIFF_COMPRESSIONS:
        known = ", ".join(sorted(set(TIFF_COMPRESSIONS.values())))
        raise ValueError(f"the TIFF file has compression {compression}; read are {known}")
    width, height, tile_width, tile_height = (tag_value(entries, order, tag) for tag in (256, 257, 322, 323))
    # libtiff takes memory for a whole tile, however small the image is.
    if tile_width * tile_height > max(2**20, 2 * width * height):
        raise ValueError(f"the TIFF file has tiles of {tile_width}x{tile_height} pixels for {width}x{height}")
    kept = {tag: entry for tag, entry in sorted(entries.items()) if tag in TIFF_TAGS}
    for tag, entry in kept.items():
        if entry.number > MAX_PARTS:
            raise ValueError(f"tag {tag} of the TIFF file has {entry.number:,} values")
    padding = bytes(len(content) % 2)
    position = struct.pack(order + "L", len(content) + len(padding))
    rows = b"".join(struct.pack(order + "HHL4s", tag, *entry) for tag, entry in kept.items())
    table = struct.pack(order + "H", len(kept)) + rows + bytes(4)  # the last four bytes: there is no next page
    return Reduced(content[:4] + position + content[8:] + padding + table, tag_value(entries, order, ORIENTATION))


class Entry(NamedTuple):
    """One entry of a TIFF directory. `raw` are the four bytes of its value, or of where its values lie."""

    kind: int
    number: int
    raw: bytes


def read_directory(content: bytes, order: str, offset: int) -> dict[int, Entry]:
    """The entries of a TIFF directory by tag. `struct.error` if the directory is incomplete."""
    (count,) = struct.unpack_from(order + "H", content, offset)
    entries: dict[int, Entry] = {}
    for index in range(count):
        tag, *entry = struct.unpack_from(order + "HHL4s", content, offset + 2 + 12 * index)
        entries.setdefault(tag, Entry(*entry))
    return entries


def tag_value(entries: dict[int, Entry], order: str, tag: int) -> int:
    """The value of a tag that holds one SHORT or LONG; 1, the default of the tags asked for here, without such a tag."""
    entry = entries.get(tag)
    if entry is None or entry.number != 1 or entry.kind not in (3, 4):
        return 1
    return struct.unpack_from(order + ("H" if entry.kind == 3 else "L"), entry.raw)[0]


def exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data, 1 if there is none. Nothing else in the data is read."""
    data = exif.removeprefix(EXIF_HEAD)
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    order = "<" if data.startswith(b"II") else ">"
    try:
        entries = read_directory(data, order, struct.unpack_from(order + "L", data, 4)[0])
    except struct.error:
        return 1
    return tag_value(entries, order, ORIENTATION)
