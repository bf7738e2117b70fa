"""Shards full of whatever goes wrong: odd but good pictures, damaged ones, bombs, strange names, broken tars.

`write_hostile(folder)` writes them and says what must come of each: the reason under which it is counted, or that it is
used. Imported by tests and by `memory_test.py`.
"""

import gzip
import io
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from clip_la.data.shards import problems

RAMP = np.stack(np.broadcast_arrays(np.linspace(0, 250, 37)[None], np.linspace(250, 0, 29)[:, None], 77.0), 2)
PICTURE = Image.fromarray(RAMP.astype(np.uint8))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
CAPTION = b"a ramp of colours"
SMALL_BOMB_PX, LARGE_BOMB_PX = 9000, 60_000


def saved(kind: str, image: Image.Image = PICTURE, **options: object) -> bytes:
    """The picture as a file."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def _turned(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def _with_alpha() -> Image.Image:
    image = PICTURE.copy()
    image.putalpha(Image.fromarray(RAMP[:, :, 0].astype(np.uint8)))
    return image


def png_bomb(side_px: int) -> bytes:
    """A PNG of one colour: a few hundred kilobytes that would decode to gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(min(side_px * (3 * side_px + 1), 1 << 26)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _lying_jpeg() -> bytes:
    data = bytearray(saved("JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


def _without_tables() -> bytes:
    data = saved("JPEG")
    return data[: data.index(b"\xff\xdb")] + data[data.index(b"\xff\xc0") :]


def good_pictures() -> dict[str, bytes]:
    """Odd files that must all be used."""
    animated = {"save_all": True, "append_images": [PICTURE.transpose(Image.Transpose.ROTATE_180)]}
    grey16 = Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70)
    return {
        "jpeg": saved("JPEG"),
        "jpeg_progressive": saved("JPEG", progressive=True),
        "jpeg_grey": saved("JPEG", PICTURE.convert("L")),
        "jpeg_cmyk": saved("JPEG", PICTURE.convert("CMYK")),
        "jpeg_turned": saved("JPEG", exif=_turned(6)),
        "jpeg_bad_exif": saved("JPEG", exif=b"Exif\0\0" + b"\xff" * 40),
        "jpeg_trailing_bytes": saved("JPEG") + b"\0" * 999,
        "png": saved("PNG"),
        "png_palette": saved("PNG", PICTURE.convert("P")),
        "png_palette_transparent": saved("PNG", PICTURE.convert("P"), transparency=1),
        "png_16_bit": saved("PNG", grey16),
        "png_1_bit": saved("PNG", PICTURE.convert("1")),
        "png_alpha": saved("PNG", _with_alpha()),
        "png_grey_alpha": saved("PNG", _with_alpha().convert("LA")),
        "png_animated": saved("PNG", **animated),
        "webp": saved("WEBP"),
        "webp_alpha": saved("WEBP", _with_alpha()),
        "webp_animated": saved("WEBP", **animated),
        "gif": saved("GIF", PICTURE.convert("P")),
        "gif_animated": saved("GIF", **animated),
        "bmp": saved("BMP"),
        "tiff": saved("TIFF"),
        "tiff_cmyk": saved("TIFF", PICTURE.convert("CMYK")),
        "ppm": saved("PPM"),
    }


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    """Files that cannot be used, and why."""
    damaged, large = problems.IMAGE_DAMAGED, problems.IMAGE_TOO_LARGE
    return {
        "zero_bytes": (b"", problems.IMAGE_EMPTY),
        "zeros": (bytes(5000), problems.NOT_AN_IMAGE),
        "html": (b"<html>404 not found</html>", problems.NOT_AN_IMAGE),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", problems.NOT_AN_IMAGE),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", problems.NOT_AN_IMAGE),
        "gzip": (gzip.compress(saved("PNG"), mtime=0), problems.NOT_AN_IMAGE),
        "jpeg_cut_in_header": (saved("JPEG")[:100], damaged),
        "jpeg_cut": (saved("JPEG")[:-200], damaged),
        "jpeg_cut_by_two": (saved("JPEG")[:-2], damaged),
        "jpeg_without_tables": (_without_tables(), damaged),
        "png_cut": (saved("PNG")[:-60], damaged),
        "webp_cut": (saved("WEBP")[:-60], damaged),
        "gif_cut": (saved("GIF")[: len(saved("GIF")) // 2], damaged),
        "png_bomb": (png_bomb(SMALL_BOMB_PX), large),
        "png_bomb_huge": (png_bomb(LARGE_BOMB_PX), large),
        "jpeg_that_lies": (_lying_jpeg(), large),
        "tiff_float": (saved("TIFF", Image.fromarray(RAMP[:, :, 0].astype(np.float32))), problems.PIXELS_NOT_SUPPORTED),
        "thin": (saved("PNG", Image.new("RGB", (2000, 3))), problems.IMAGE_TOO_LONG),
        "one_pixel": (saved("PNG", Image.new("RGB", (1, 1))), problems.IMAGE_TOO_SMALL),
    }


@dataclass
class Expected:
    """What must come of the shards: keys used, and how often each reason is counted."""

    used: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    kinds: int = 0


Members = list[tuple[str, bytes]]


def _samples() -> Iterator[tuple[str, Members, str | None]]:
    """Kind, members, and the reason or None where it is used."""
    png = saved("PNG")
    for name, data in good_pictures().items():
        yield name, [(f"{name}.jpg", data), (f"{name}.txt", CAPTION)], None
    for name, (data, reason) in bad_pictures().items():
        yield name, [(f"{name}.png", data), (f"{name}.txt", CAPTION)], reason
    yield "climbing key", [("../../etc/passwd.png", png), ("../../etc/passwd.txt", CAPTION)], None
    yield "absolute key", [("/root/x.png", png), ("/root/x.txt", CAPTION)], None
    yield "spaces and a newline", [("a b\nc.png", png), ("a b\nc.txt", CAPTION)], None
    yield "upper case", [("upper.PNG", png), ("upper.TXT", CAPTION)], None
    yield "long key", [("d/" * 90 + "k.png", png), ("d/" * 90 + "k.txt", CAPTION)], None
    yield "caption with zero bytes", [("nul.png", png), ("nul.txt", b"a\0b")], None
    yield "caption with byte order mark", [("bom.png", png), ("bom.txt", b"\xef\xbb\xbfmark")], None
    yield "very long caption", [("long.png", png), ("long.txt", b"word " * 40_000)], None
    yield "broken json beside", [("json.json", b"{"), ("json.png", png), ("json.txt", CAPTION)], None
    yield "empty caption", [("empty.png", png), ("empty.txt", b"")], problems.EMPTY_CAPTION
    yield "blank caption", [("blank.png", png), ("blank.txt", b" \n\t")], problems.EMPTY_CAPTION
    yield "caption not UTF-8", [("latin.png", png), ("latin.txt", b"caf\xe9 \xff")], problems.CAPTION_NOT_TEXT
    yield "no caption", [("nocap.png", png)], problems.NO_CAPTION
    yield "class alone", [("cls.png", png), ("cls.cls", b"3")], problems.NO_CAPTION
    yield "no picture", [("nopic.txt", CAPTION)], problems.NO_IMAGE
    yield "nested tar", [("nest.tar", _tar([("a.png", png)])), ("nest.txt", CAPTION)], problems.NO_IMAGE
    yield "no part", [("README", b"read me")], problems.NAME_WITHOUT_PARTS
    yield "hidden", [(".DS_Store", b"x")], problems.NAME_WITHOUT_PARTS


def _tar(members: Members, **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _two(prefix: str) -> Members:
    png = saved("PNG", NOISE)
    return [(f"{prefix}{i}{part}", data) for i in "01" for part, data in ((".png", png), (".txt", CAPTION))]


def _shards() -> Iterator[tuple[str, bytes, list[str], list[str]]]:
    """Kind, bytes, keys used, reasons counted."""
    size = len(saved("PNG", NOISE))
    second = 512 + (size + 511) // 512 * 512 + 1024  # where the second sample's header begins
    yield "empty file", b"", [], [problems.SHARD_EMPTY]
    yield "web page", b"<html>gone</html>" * 99, [], [problems.SHARD_NOT_TAR]
    yield "short", b"x", [], [problems.SHARD_NOT_TAR]
    yield "no samples", _tar([]), [], []
    yield "gzipped", gzip.compress(_tar(_two("gz")), mtime=0), ["gz0", "gz1"], []
    yield "pax", _tar(_two("pa\u00e9"), format=tarfile.PAX_FORMAT), ["pa\u00e90", "pa\u00e91"], []
    yield "cut in a picture", _tar(_two("ca"))[: second + 600], ["ca0"], [problems.SHARD_TRUNCATED]
    yield "cut in a header", _tar(_two("ch"))[: second + 100], ["ch0"], [problems.SHARD_TRUNCATED]
    yield "cut at a member", _tar(_two("cm"))[:second], ["cm0"], [problems.SHARD_WITHOUT_END]
    flipped = bytearray(_tar(_two("fl")))
    flipped[second + 130] ^= 1
    yield "flipped bit in a header", bytes(flipped), ["fl0"], [problems.SHARD_DAMAGED, problems.NO_IMAGE]
    yield "length too small", _lying(_two("ls"), second, 100), ["ls0"], [problems.SHARD_DAMAGED, problems.IMAGE_DAMAGED]
    yield "length too large", _lying(_two("ll"), second, 1 << 20), ["ll0"], [problems.SHARD_TRUNCATED]
    yield "length of terabytes", _lying(_two("lt"), second, 8**11 - 1), ["lt0"], [problems.SHARD_TRUNCATED]
    yield "length not a number", _lying(_two("ln"), second, None), ["ln0"], [problems.SHARD_DAMAGED, problems.NO_IMAGE]
    yield "gzip cut", gzip.compress(_tar(_two("gc")), mtime=0)[:1500], [], [problems.SHARD_TRUNCATED]
    latin = _tar([(name.replace("X", "\udcff"), data) for name, data in _two("X")], errors="surrogateescape")
    yield "keys not UTF-8", latin, ["\\xff0", "\\xff1"], []
    yield "twice the same key", _tar(_two("tw") + _two("tw")), ["tw0", "tw1", "tw0", "tw1"], []
    yield "links and devices", _special(), [], [problems.NOT_A_FILE] * 4


def _lying(members: Members, header: int, length: int | None) -> bytes:
    """A tar whose header at one place says another length, with the checksum to match."""
    data = bytearray(_tar(members))
    field_bytes = b"not a number" if length is None else b"%011o\0" % length
    data[header + 124 : header + 136] = field_bytes
    data[header + 148 : header + 156] = b" " * 8
    data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    return bytes(data)


def _special() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in {"dir": b"5", "a.txt": b"1", "b.txt": b"2", "c.txt": b"3", "d.txt": b"6"}.items():
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    return buffer.getvalue()


def write_hostile(folder: Path) -> tuple[list[str], Expected]:
    """Writes all of it and returns the shards' paths with what must come of them (limits: side from 2, aspect 20)."""
    expected = Expected()
    members: Members = []
    for _, parts, reason in _samples():
        expected.kinds += 1
        members += parts
        if reason is None:
            name = parts[-1][0]
            expected.used.append(name[: name.rindex(".")])
        else:
            expected.skipped[reason] += 1
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "samples.tar"]
    paths[0].write_bytes(_tar(members))
    for number, (_, data, used, reasons) in enumerate(_shards()):
        expected.kinds += 1
        expected.used += used
        expected.skipped.update(reasons)
        paths.append(folder / f"{number:02d}.tar")
        paths[-1].write_bytes(data)
    return [str(path) for path in paths], expected
