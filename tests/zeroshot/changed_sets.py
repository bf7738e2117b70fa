"""Small test sets in every form, and changes that keep names, sizes and, where they can, times."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clip_la.data.shards.reader import ShardWriter

COLOURS = ("red", "green", "blue", "yellow", "white", "black")


def bmp(number: int) -> bytes:
    """A picture whose size in bytes does not depend on its colours."""
    image = Image.new("RGB", (40, 40), COLOURS[number % 6])
    image.paste(COLOURS[(number + 2) % 6], (5 * (number % 6), 0, 40, 20))
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()


def shards(folder: Path, part: str, text: Callable[[int], str], first: int = 0, classes: bool = True) -> None:
    """One shard of six pictures from `first` on, each with a part of text."""
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder / "00000.tar") as writer:
        for number in range(6):
            picture = Image.open(io.BytesIO(bmp((number + first) % 6)))
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", compress_level=0)
            writer.write({"__key__": f"k{number}", ".png": buffer.getvalue(), part: text(number)})
    if classes:
        (folder / "classnames.txt").write_text("\n".join(COLOURS))


def folders(root: Path, shift: int = 0) -> None:
    """A folder a class with one picture each, that of the class `shift` places on."""
    for number, name in enumerate(COLOURS):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "a.bmp").write_bytes(bmp((number + shift) % 6))


def parquet(root: Path, shift: int = 0, names: tuple[str, ...] = COLOURS) -> None:
    root.mkdir(parents=True, exist_ok=True)
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"image": [bmp(i) for i in range(6)], "label": [(i + shift) % 6 for i in range(6)]})
    plain = {"compression": "none", "use_dictionary": False}
    pq.write_table(table.replace_schema_metadata(metadata), root / "a.parquet", **plain)


def keep_time(path: Path, change: Callable[[], object]) -> None:
    """Makes a change of a file that leaves its size; the time of change is put back."""
    before = path.stat()
    change()
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def mended_labels(data: Path) -> None:
    keep_time(data / "00000.tar", lambda: shards(data, ".cls", lambda i: str((i + 1) % 6)))


def other_tar_renamed_over_it(data: Path) -> None:
    shards(data.with_name("other"), ".cls", lambda i: str(5 - i))
    before = (data / "00000.tar").stat()
    os.utime(data.with_name("other") / "00000.tar", ns=(before.st_atime_ns, before.st_mtime_ns))
    (data.with_name("other") / "00000.tar").rename(data / "00000.tar")


def other_pictures_in_the_shard(data: Path) -> None:
    keep_time(data / "00000.tar", lambda: shards(data, ".cls", str, first=1))


def symlink_to_another_tar(data: Path) -> None:
    shards(data.with_name("other"), ".cls", lambda i: str(5 - i))
    (data / "00000.tar").rename(data.with_name("first.tar"))
    (data / "00000.tar").symlink_to(data.with_name("other") / "00000.tar")


def edited_classnames(data: Path) -> None:
    names = data / "classnames.txt"
    keep_time(names, lambda: names.write_text("\n".join(reversed(COLOURS))))


def edited_templates(data: Path) -> None:
    (data / "zeroshot_classification_templates.txt").write_text("an icon of {c}\n")


def replaced_picture(data: Path) -> None:
    keep_time(data / "red" / "a.bmp", lambda: (data / "red" / "a.bmp").write_bytes(bmp(3)))


def swapped_folders(data: Path) -> None:
    (data / "red").rename(data / "x")
    (data / "green").rename(data / "red")
    (data / "x").rename(data / "green")


def parquet_labels(data: Path) -> None:
    keep_time(data / "a.parquet", lambda: parquet(data, shift=1))


def parquet_class_names(data: Path) -> None:
    keep_time(data / "a.parquet", lambda: parquet(data, names=("green", "red", *COLOURS[2:])))


def numbered_shards(data: Path) -> None:
    shards(data, ".cls", str)


# Each change of a set for classification, and what makes the set that it changes.
CLASSIFIED = {
    mended_labels: numbered_shards,
    other_tar_renamed_over_it: numbered_shards,
    other_pictures_in_the_shard: numbered_shards,
    symlink_to_another_tar: numbered_shards,
    edited_classnames: numbered_shards,
    edited_templates: numbered_shards,
    replaced_picture: folders,
    swapped_folders: folders,
    parquet_labels: parquet,
    parquet_class_names: parquet,
}
