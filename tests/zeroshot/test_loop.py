"""The loop of all tasks on its own: each unit once, whatever is cut where, the rows always the same."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_la.errors import UserError
from clip_la.zeroshot.runner import loop
from clip_la.zeroshot.runner.loop import run_units
from clip_la.zeroshot.runner.rows import Features, ImageFeatures, PartialResults, Predictions, Unit

# Source -> samples of each of its units; a unit may have none.
SIZES = {0: (3, 3, 1), 1: (0,), 2: (3, 0, 3, 2)}
UNITS = [(source, number) for source, sizes in SIZES.items() for number in range(len(sizes))]
KEYS = ("plain", "caf\u00e9", "half \ud83d", "", "two\nlines")


def rows_of(unit: Unit) -> ImageFeatures:
    """Made up, but the same every time."""
    source, number = unit
    positions = np.arange(sum(SIZES[source][:number]), sum(SIZES[source][: number + 1]))
    return ImageFeatures(
        sources=np.full(len(positions), source, np.int32),
        positions=positions,
        units=np.array([unit]),
        skipped=((source, 99, "k", "why"),) if number == 1 else (),
        keys=tuple(KEYS[p % 5] for p in positions),
        labels=tuple(tuple(range(p % 3)) for p in positions),
        captions=tuple((KEYS[p % 5],) * (p % 2) for p in positions),
        values=np.stack([np.full(4, source + p / 7, np.float32) for p in positions])
        if len(positions)
        else np.zeros((0, 0), np.float32),
    )


class Counted:
    """The units in any order, and what was computed of them; stops after some as a kill would."""

    def __init__(self, seed: int, stop_after: int | None = None) -> None:
        self.order = np.random.default_rng(seed).permutation(len(UNITS))
        self.stop_after, self.made, self.asked = stop_after, [], False

    def units(self, done: frozenset[Unit]) -> Iterator[Unit]:
        self.asked = True
        yield from (UNITS[i] for i in self.order if UNITS[i] not in done)

    def compute(self, unit: Unit) -> ImageFeatures:
        if len(self.made) == self.stop_after:
            raise KeyboardInterrupt
        assert torch.is_inference_mode_enabled()
        self.made.append(unit)
        return rows_of(unit)


def run(counted: Counted, folder: Path | None) -> ImageFeatures:
    kept = PartialResults(folder, "", ImageFeatures)
    rows = run_units(counted.units, counted.compute, kept, precision="float32", name="x", total=None, progress=False)
    assert rows is not None
    return rows


def assert_same(rows: ImageFeatures, expected: ImageFeatures) -> None:
    for name in ("sources", "positions", "units", "values"):
        assert np.array_equal(getattr(rows, name), getattr(expected, name)), name
        assert getattr(rows, name).dtype == getattr(expected, name).dtype
    for name in ("keys", "labels", "captions", "skipped"):
        assert getattr(rows, name) == getattr(expected, name), name


def test_rows_come_in_the_order_of_the_data():
    rows = run(Counted(0), None)
    places = [(source, p) for source, sizes in SIZES.items() for p in range(sum(sizes))]
    assert list(zip(rows.sources.tolist(), rows.positions.tolist(), strict=True)) == places
    assert [tuple(unit) for unit in rows.units.tolist()] == UNITS
    assert rows.keys == tuple(KEYS[p % 5] for _, p in places)
    assert rows.values[:, 0].tolist() == [np.float32(source + p / 7) for source, p in places]
    assert rows.skip_counts() == {"why": 2}
    assert_same(run(Counted(1), None), rows)


@pytest.mark.parametrize("stops", [(1,), (3, 2), (2, 0, 4)])
def test_what_was_cut_is_resumed(tmp_path: Path, stops: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", -1.0)
    made: list[Unit] = []
    for seed, stop in enumerate(stops):
        cut = Counted(seed, stop)
        with pytest.raises(KeyboardInterrupt):
            run(cut, tmp_path)
        made += cut.made
    last = Counted(7)
    assert_same(run(last, tmp_path), run(Counted(0), None))
    assert sorted(made + last.made) == UNITS
    # All are there now: the data are not even opened.
    again = Counted(8)
    assert_same(run(again, tmp_path), run(Counted(0), None))
    assert not again.asked


def test_a_damaged_file_and_a_unit_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", -1.0)
    run(Counted(0), tmp_path)
    files = sorted(tmp_path.glob("*.npz"))
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])
    (tmp_path / "twice.npz").write_bytes(files[1].read_bytes())
    mended = Counted(1)
    assert_same(run(mended, tmp_path), run(Counted(0), None))
    assert len(mended.made) == 1
    assert "evaluated again" in capsys.readouterr().err


def test_no_units_no_rows():
    kept = PartialResults(None, "", Features)
    assert run_units(lambda done: (), rows_of, kept, precision="float32", name="x", total=0, progress=False) is None


def test_rows_are_read_as_what_they_are(tmp_path: Path):
    rows = ImageFeatures.merge([rows_of(unit) for unit in UNITS])
    rows.save(tmp_path / "rows.npz")
    assert_same(ImageFeatures.load(tmp_path / "rows.npz"), rows)
    with pytest.raises(UserError, match="is damaged or holds no Predictions"):
        Predictions.load(tmp_path / "rows.npz")
    with pytest.raises(UserError, match="no Predictions at"):
        Predictions.load(tmp_path / "absent.npz")
    # What would be run on reading is never read.
    np.savez(tmp_path / "pickled.npz", sources=np.array([print], dtype=object))
    with pytest.raises(UserError, match="is damaged or holds no ImageFeatures"):
        ImageFeatures.load(tmp_path / "pickled.npz")
