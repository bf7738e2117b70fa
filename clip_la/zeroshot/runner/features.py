"""Features of all pictures of a test set, for what needs them all at once: retrieval, k-NN, linear probes."""

import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from clip_la import distributed as ranks
from clip_la import results
from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels.classes import content_hash
from clip_la.zeroshot.model.eval_model import EvalModel, matmul_precision
from clip_la.zeroshot.runner.batches import ImageBatch, image_batches
from clip_la.zeroshot.runner.partial_results import PartialResults, collect, earlier, units_of
from clip_la.zeroshot.runner.predictions import SkippedPicture, first_keys, said
from clip_la.zeroshot.runner.progress import progress_bar

# Beside the predictions: features that the evaluations of one model share, until all of them are done.
FOLDER = "features"
# (source, position in it, key, labels, captions)
Known = tuple[int, int, str, tuple[int, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Features:
    """Unit features on the CPU, float32, one row a picture in the test set's order, and what is known of each."""

    images: Float[Tensor, "images embed_dim"]
    keys: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    captions: tuple[tuple[str, ...], ...]
    skipped: dict[str, int]
    examples: dict[str, str]
    """The first picture skipped for each reason."""


@dataclass(frozen=True)
class FeatureRows:
    """The features of some units, in any order; captions are no pictures and have nothing `known`."""

    values: Float32[np.ndarray, "rows embed_dim"]
    units: Int64[np.ndarray, "units 2"]
    known: tuple[Known, ...] = ()
    skipped: tuple[SkippedPicture, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a .npz, whole or not at all."""
        notes = np.array(json.dumps([self.known, self.skipped]))
        with atomic_write(path) as stream:
            np.savez(stream, values=self.values, units=self.units, notes=notes)


def read_rows(path: str | os.PathLike[str]) -> FeatureRows:
    """Reads a file of `FeatureRows.save`; raises UserError for a missing, damaged or foreign one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            known, skipped = json.loads(str(file["notes"]))
            rows = tuple((s, p, key, tuple(labels), tuple(captions)) for s, p, key, labels, captions in known)
            return FeatureRows(file["values"], file["units"], rows, tuple(tuple(entry) for entry in skipped))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or holds no features ({error})") from None


def merge_rows(parts: Sequence[FeatureRows]) -> FeatureRows:
    """All rows of several parts, one part after the other; at least one."""
    filled = [part.values for part in parts if len(part.values)] or [parts[0].values]
    return FeatureRows(
        np.concatenate(filled),
        np.concatenate([part.units for part in parts]),
        tuple(row for part in parts for row in part.known),
        tuple({entry: None for part in parts for entry in part.skipped}),
    )


def features_id(eval_model: EvalModel, test_set: EvalDataset, precision: str, batch_size: int) -> str:
    """A hash of all that the features of a test set, and what is known of its pictures, depend on."""
    parts = (
        eval_model.hash,
        test_set.fingerprint,
        test_set.classes.hash,
        precision,
        batch_size,
        eval_model.device.type,
    )
    return content_hash([FOLDER, results.FORMAT, *parts])


def feature_parts(state: Path | None, name: str) -> PartialResults[FeatureRows] | None:
    """Where features are kept under a name that begins with a `features_id`; None keeps nothing."""
    return None if state is None else PartialResults(state / FOLDER / f"{name}.parts", read_rows)


def forget(state: Path, features: str) -> None:
    """Removes what is kept under names that begin with this `features_id`."""
    for path in (state / FOLDER).glob(f"{features}*.parts"):
        shutil.rmtree(path, ignore_errors=True)
    if (state / FOLDER).is_dir() and not any((state / FOLDER).iterdir()):
        (state / FOLDER).rmdir()


@torch.inference_mode()
def encode_batch(eval_model: EvalModel, batch: ImageBatch, precision: str) -> FeatureRows:
    """The rows of one unit."""
    source = batch.unit[0]
    values = torch.zeros(0, 0)
    if batch.images is not None:
        values = eval_model.encode_images(batch.images, precision)[batch.rows].cpu()
    columns = zip(batch.positions, batch.keys, batch.labels, batch.captions, strict=True)
    return FeatureRows(
        values.numpy(),
        np.array([batch.unit], dtype=np.int64),
        tuple((source, *column) for column in columns),
        tuple((source, *entry) for entry in batch.skipped),
    )


def encode_images(
    eval_model: EvalModel,
    test_set: EvalDataset,
    *,
    precision: str,
    batch_size: int,
    num_workers: int = 0,
    state: Path | None = None,
    progress: bool = True,
) -> Features:
    """Every picture once, by all ranks together; every rank returns all rows.

    Args:
        state: a folder where finished units are kept, for a killed evaluation to resume from and for others of the same
            model on the same pictures, until `forget` removes them.

    Raises:
        UserError: what the test set raises; no picture could be read.
    """
    parts = feature_parts(state, features_id(eval_model, test_set, precision, batch_size))
    before, done, is_all = earlier(parts)

    def work() -> list[FeatureRows]:
        if is_all:
            return before
        batches = image_batches(
            test_set.sources,
            eval_model.preprocess,
            batch_size=batch_size,
            num_workers=num_workers,
            done=done,
            pin_memory=eval_model.device.type == "cuda",
        )
        num_done = sum(len(part.known) for part in before)
        with matmul_precision(precision), progress_bar(test_set, num_done, progress) as bar:

            def encoded() -> Iterator[FeatureRows]:
                for batch in batches:
                    yield encode_batch(eval_model, batch, precision)
                    bar.update(len(batch.keys) * ranks.world_size())

            return [*before, *collect(encoded(), merge_rows, parts)]

    gathered = [part for own in ranks.all_gather(work) for part in own]
    if parts is not None and not is_all and ranks.rank() == 0:
        parts.finish(len(units_of(gathered)))
    return _in_order(test_set, gathered)


def _in_order(test_set: EvalDataset, gathered: Sequence[FeatureRows]) -> Features:
    merged = merge_rows(gathered) if gathered else FeatureRows(np.zeros((0, 0), np.float32), np.zeros((0, 2), np.int64))
    reasons = dict(sorted(Counter(reason for *_, reason in merged.skipped).items()))
    if not merged.known:
        raise UserError(
            f"{test_set.name} has no picture that can be evaluated ({said(merged.skipped) or 'it is empty'})"
        )
    order = sorted(range(len(merged.known)), key=lambda i: merged.known[i][:2])
    _, _, keys, labels, captions = zip(*(merged.known[i] for i in order), strict=True)
    return Features(torch.from_numpy(merged.values[order]), keys, labels, captions, reasons, first_keys(merged.skipped))
