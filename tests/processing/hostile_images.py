"""Small image files that ask for much memory or time. `python hostile_images.py FOLDER` writes them."""

import io
import struct
import sys
import zlib
from pathlib import Path

from PIL import Image


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


SMALL = Image.new("RGB", (16, 16), "red")
ZEROS = bytes(2**20)


# PNG


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def squeezed(count: int) -> bytes:
    """`count` zero bytes, compressed."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(ZEROS[: min(2**20, count - done)]) for done in range(0, count, 2**20)]
    return b"".join([*parts, packer.flush()])


# JPEG


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(*segments: bytes, **options) -> bytes:
    content = saved(SMALL, "JPEG", **options)
    return content[:2] + b"".join(segments) + content[2:]


def jpeg_of_size(width: int, height: int) -> bytes:
    content = bytearray(jpeg())
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, height, width)
    return bytes(content)


def jpeg_of_scans(count: int) -> bytes:
    content = saved(Image.new("RGB", (4000, 4000)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def ifd(entries: list[tuple[int, int, int, int]], order: str = "<") -> bytes:
    """A TIFF directory of (tag, type, count, value or offset)."""
    rows = b"".join(struct.pack(order + "HHLL", *entry) for entry in entries)
    return struct.pack(order + "H", len(entries)) + rows + bytes(4)


def greedy_exif(size: int, entries: int) -> bytes:
    """EXIF data of `size` bytes, each of whose entries claims all of them: memory of the product."""
    table = ifd([(0x0200 + index, 7, size - 8, 8) for index in range(entries)])
    return (b"II*\0" + struct.pack("<L", 8) + table).ljust(size, b"\0")


# GIF


def gif(screen: tuple[int, int], frame: tuple[int, int], *extensions: bytes, size: int = 16) -> bytes:
    content = saved(Image.new("P", (size, size)), "GIF")
    start = content.index(b"\x2c\0\0\0\0")
    head = bytearray(content[:start])
    struct.pack_into("<HH", head, 6, *screen)
    return bytes(head) + b"".join(extensions) + b"\x2c\0\0\0\0" + struct.pack("<HH", *frame) + content[start + 9 :]


# WebP


def webp_of_size(width: int, height: int) -> bytes:
    content = bytearray(saved(SMALL, "WEBP", lossless=True))
    place = content.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<L", content, place)
    struct.pack_into("<L", content, place, bits & ~(2**28 - 1) | width - 1 | height - 1 << 14)
    return bytes(content)


def webp_of_canvas(width: int, height: int) -> bytes:
    content = bytearray(saved(SMALL, "WEBP", save_all=True, append_images=[Image.new("RGB", (16, 16))]))
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = struct.pack("<L", width - 1)[:3] + struct.pack("<L", height - 1)[:3]
    return bytes(content)


# TIFF


def tiff(changes: dict[int, tuple[int, int, int]] | None = None, more: bytes = b"", **options) -> bytes:
    """A small grey file whose tags are replaced by (type, count, value)."""
    tags = {256: (3, 1, 16), 257: (3, 1, 16), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
    tags |= {273: (4, 1, 8), 278: (3, 1, 16), 279: (4, 1, 256)} | (changes or {})
    table = ifd([(tag, *entry) for tag, entry in sorted(tags.items())])
    return b"II*\0" + struct.pack("<L", 264 + len(more)) + bytes(256) + more + table


def bmp(width: int, height: int, compression: int = 0, bits: int = 24, pixels: bytes = b"") -> bytes:
    palette = bytes(1024) if bits == 8 else b""
    head = struct.pack("<LllHHLLllLL", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    start = 54 + len(palette)
    return b"BM" + struct.pack("<LHHL", start + len(pixels), 0, 0, start) + head + palette + pixels


def box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">L", len(data) + 8) + kind + data


def make() -> dict[str, tuple[bytes, str | None]]:
    """
    The files by name, and for each a pattern of the message that refuses it.

    None if the file can be read, because what is hostile in it is left out.
    """
    pixels = "pixels are more than the 16,000,000 that are read"
    parts = "too many, or too small"
    return {
        "size.png": (png(20_000, 20_000, bits=1, pixels=squeezed(2501 * 20_000)), pixels),
        "grey16.png": (png(30_000, 3_000, bits=16, pixels=squeezed(2**20)), pixels),
        "largest.png": (png(2**31 - 1, 2**31 - 1), pixels),
        "cut.png": (png(4_000, 4_000, pixels=squeezed(2**16)), "truncated"),
        "chunks.png": (png(16, 16, chunk(b"tEXt", b"a\0b") * 400_000), parts),
        "text.png": (png(16, 16, chunk(b"zTXt", b"a\0\0" + squeezed(2**20)) * 80), "text"),
        "large-text.png": (png(16, 16, chunk(b"zTXt", b"a\0\0" + squeezed(2**27))), "too large"),
        "profile.png": (png(16, 16, chunk(b"iCCP", b"a\0\0" + squeezed(2**27))), "too large"),
        "exif.png": (png(16, 16, chunk(b"eXIf", greedy_exif(2**20, 60_000)), pixels=squeezed(272)), None),
        "size.jpg": (jpeg_of_size(60_000, 60_000), pixels),
        "scans.jpg": (jpeg_of_scans(1_000), "scans"),
        "segments.jpg": (jpeg(segment(0xFE, b"") * 400_000), "segments"),
        "exif.jpg": (jpeg(*[segment(0xE1, b"Exif\0\0" + greedy_exif(65_000, 5_400))] * 3), None),
        "pages.jpg": (jpeg(segment(0xE2, b"MPF\0" + greedy_exif(65_000, 5_400))), None),
        "size.webp": (webp_of_size(16_383, 16_383), pixels),
        "canvas.webp": (webp_of_canvas(16_383, 16_383), pixels),
        "screen.gif": (gif((65_535, 65_535), (16, 16)), pixels),
        "frame.gif": (gif((16, 16), (13_000, 13_000), b"!\xf9\x04\x08\0\0\0\0"), pixels),
        "comment.gif": (gif((16, 16), (16, 16), b"!\xfe" + (b"\xff" + b"a" * 255) * 40_000 + b"\0"), "metadata"),
        "extensions.gif": (gif((16, 16), (16, 16), b"!\xfe\0" * 1_000_000), "extensions"),
        "size.tif": (tiff({256: (4, 1, 100_000), 257: (4, 1, 100_000)}), pixels),
        "tile.tif": (tiff({322: (4, 1, 65_536), 323: (4, 1, 65_536), 324: (4, 1, 8), 325: (4, 1, 256)}), "tiles"),
        "lzma.tif": (tiff({259: (3, 1, 34_925)}), "compression 34925"),
        "tags.tif": (tiff({33_000 + tag: (7, 2**20, 8) for tag in range(30_000)}, bytes(2**20)), None),
        "strips.tif": (tiff({273: (3, 2_000_000, 264)}, bytes(4_000_000)), "2,000,000 values"),
        "pages.tif": (tiff({34_665: (4, 1, 264)}, ifd([(tag, 3, 2**19, 8) for tag in range(5_000)]) + ZEROS), None),
        "big.tif": (b"II\x2b\0\x08\0\0\0" + bytes(64), "BigTIFF"),
        "size.bmp": (bmp(30_000, 30_000), pixels),
        "runs.bmp": (bmp(4_000, 4_000, compression=1, bits=8, pixels=b"\x01\0" * 2_000_000), parts),
        "comment.ppm": (b"P6 " + b"#" * 4_000_000 + b"\n4 4 255\n" + bytes(48), parts),
        "plain.ppm": (b"P3 4 4 255\n" + b"#\n" * 500_000, "numbers as text"),
        "range.ppm": (b"P5 4000 4000 100\n" + bytes(16_000_000), parts),
        "other.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n", "identify"),
        "other.psd": (
            b"8BPS\0\x01" + bytes(6) + struct.pack(">HLLHH", 3, 30_000, 30_000, 8, 3) + bytes(64),
            "identify",
        ),
        "other.avif": (box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf") + box(b"meta", bytes(64)), "identify"),
    }


if __name__ == "__main__":
    for name, (content, _) in make().items():
        (Path(sys.argv[1]) / name).write_bytes(content)
