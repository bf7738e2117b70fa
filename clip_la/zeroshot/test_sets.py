"""From what a user names to a test set: class folders, webdataset shards, Parquet files."""

from dataclasses import replace
from pathlib import Path

from clip_la.data.sources import is_shard_name, shards_in
from clip_la.errors import UserError, unknown
from clip_la.zeroshot import folders, parquet_sets, shard_sets
from clip_la.zeroshot.classes import ClassSet
from clip_la.zeroshot.records import TestSet

# Folder names that say which part of a data set this is, not which data set.
SPLITS = ("val", "validation", "test", "images", "data", "train")
LABELS = ("own", "real")
PARQUET = ".parquet"
# Braces, globs, addresses, pipes: what only the shard reader understands.
SHARD_MARKS = set("{*?[:")
EXPECTED = "expected class folders (CLASS/PICTURE.jpg), shards (*.tar) or Parquet files"


def default_name(data: str) -> str:
    """The name of the data set in results: its folder's, with the folder above where that only names a split."""
    path = Path(data).resolve()
    if path.suffix or "*" in path.name:
        path = path.parent
    return f"{path.parent.name}-{path.name}" if path.name in SPLITS else path.name


def open_test_set(
    data: str, *, classes: ClassSet | None = None, name: str | None = None, labels: str = "own"
) -> TestSet:
    """A test set for classification.

    Args:
        data: a folder of class folders, a folder of shards or Parquet files, a shard, a brace range or a glob.
        classes: the classes to choose from; by default those that the data name.
        labels: "own", or "real" for the ReaL labels of ImageNet-1K's validation set.

    Raises:
        UserError: no such data, an unknown layout, labels outside the classes.
    """
    if labels not in LABELS:
        raise unknown("labels", labels, LABELS)
    name = name or default_name(data)
    test_set = replace(_open(data, classes, name), data=data)
    if labels == "real":
        return folders.with_real_labels(test_set)
    return test_set


def _open(data: str, classes: ClassSet | None, name: str) -> TestSet:
    root = Path(data)
    if root.suffix == PARQUET or (any(any(folder.glob(f"*{PARQUET}")) for folder in (root, root / "data"))):
        return parquet_sets.open_parquet(root, classes, name)
    if not root.exists() and not SHARD_MARKS & set(data) and not is_shard_name(root.name):
        raise UserError(f"no data at {data}; {EXPECTED}")
    if not root.is_dir():
        return shard_sets.open_shards(data, classes, name)
    if any(shards_in(folder) for folder in (root, *(root / split for split in shard_sets.SPLIT_FOLDERS))):
        return shard_sets.open_shards(data, classes, name)
    mappings = folders.objectnet_mappings(root)
    if mappings is not None:
        return folders.open_objectnet(mappings.parent / "images", mappings, name)
    if not folders.class_folders(root):
        raise UserError(f"{data} holds no test set; {EXPECTED}")
    return folders.open_folders(root, classes, name)
