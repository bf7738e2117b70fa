"""From what a user names to a test set: class folders, webdataset shards, Parquet files."""

from dataclasses import replace
from pathlib import Path

from clip_la.data.shards.formats import IMAGE_SUFFIXES
from clip_la.data.shards.sources import SHARD_SUFFIXES, is_shard_name
from clip_la.errors import UserError, unknown
from clip_la.zeroshot.datasets import folders, layout
from clip_la.zeroshot.datasets import parquet as parquet_sets
from clip_la.zeroshot.datasets import shards as shard_sets
from clip_la.zeroshot.datasets.parquet import PARQUET
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels.classes import ClassSet
from clip_la.zeroshot.options import SKIP, UNKNOWN_CLASSES

# Folder names that say which part of a data set this is, not which data set.
SPLITS = ("val", "validation", "test", "images", "data", "train")
LABELS = ("own", "real")
# Braces, globs, addresses, pipes: what only the shard reader understands.
SHARD_MARKS = set("{*?[:")
EXPECTED = "expected class folders (CLASS/IMAGE.jpg), shards (*.tar) or Parquet files"


def default_name(data: str) -> str:
    """The name of the data set in results: its folder's, with the folder above where that only names a split."""
    path = Path(data).resolve()
    if path.suffix or "*" in path.name:
        path = path.parent
    return f"{path.parent.name}-{path.name}" if path.name in SPLITS else path.name


def open_dataset(
    data: str,
    *,
    classes: ClassSet | None = None,
    name: str | None = None,
    labels: str = "own",
    unknown_classes: str = SKIP,
    training: bool = False,
) -> EvalDataset:
    """A test set for classification.

    Args:
        data: a folder of class folders, a folder of shards or Parquet files, a shard, a brace range or a glob.
        classes: the classes to choose from; by default those that the data name.
        labels: "own", or "real" for the ReaL labels of ImageNet-1K's validation set.
        unknown_classes: what becomes of images whose class `classes` lacks: "skip" counts them as skipped, "error"
            raises.
        training: of data that hold several parts take the one for training, for those who learn from it.

    Raises:
        UserError: no such data, an unknown layout, labels outside the classes.
    """
    if labels not in LABELS:
        raise unknown("labels", labels, LABELS)
    if unknown_classes not in UNKNOWN_CLASSES:
        raise unknown("choice for unknown classes", unknown_classes, UNKNOWN_CLASSES)
    test_set = replace(_open(Path(data), data, classes, name, unknown_classes, training), data=data)
    return folders.with_real_labels(test_set) if labels == "real" else test_set


def _open(
    root: Path, data: str, classes: ClassSet | None, name: str | None, unknown_classes: str, training: bool
) -> EvalDataset:
    # The shard reader has its own words for a shard that is not there.
    if not root.exists() and not SHARD_MARKS & set(data) and not is_shard_name(root.name):
        raise UserError(f"no data at {data}; {EXPECTED}")
    shards = shard_sets.places_with_shards(root, training)
    beside = [path for place in (root, root / "data") for path in place.glob(f"*{PARQUET}")] if root.is_dir() else []
    # img2dataset puts a Parquet file beside each tar, with what became of its pairs: the shards are the data then.
    alone = [path for path in beside if not any(path.with_suffix(end).exists() for end in SHARD_SUFFIXES)]
    if shards and alone:
        how = f"--data '{root}/*.tar' or --data {alone[0]}"
        raise UserError(f"{root} holds shards and Parquet files; name which: {how}")
    if (beside and not shards) or (not root.is_dir() and root.suffix.lower() == PARQUET):
        return parquet_sets.open_parquet(root, classes, name or default_name(data), unknown_classes, training)
    if not root.is_dir() or shards:
        return shard_sets.open_shards(data, classes, name or default_name(data), unknown_classes, training)
    if (objectnet := folders.open_objectnet(root, name or default_name(data))) is not None:
        return objectnet
    root, notes = layout.class_root(root, IMAGE_SUFFIXES, training)
    if not layout.folders_in(root):
        raise UserError(f"{data} holds no test set; {EXPECTED}")
    return folders.open_folders(root, classes, name or default_name(str(root)), unknown_classes, notes)
