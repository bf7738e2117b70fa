"""A run's folder: names that sort, files that are checkpoints, rows that are whole."""

from pathlib import Path

import pytest

from clip_la.runs import RunFolder, checkpoint_name, samples_of


def test_names_of_checkpoints_sort_as_their_samples() -> None:
    samples = [10**9, 64, 128, 999_999_999, 12800]
    assert sorted(map(checkpoint_name, sorted(samples)[:-1])) == list(map(checkpoint_name, sorted(samples)[:-1]))
    assert [samples_of(Path(checkpoint_name(n))) for n in samples] == samples


@pytest.mark.parametrize(
    "name", ["samples=12.ckpt.part", ".samples=000000012.ckpt.x.part", "last.ckpt", "samples=.ckpt"]
)
def test_another_file_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    (run.checkpoints / name).touch()
    assert samples_of(run.checkpoints / name) is None
    assert run.saved_checkpoints() == {}
    assert run.newest_checkpoint() is None


def test_checkpoints_are_in_order_of_samples_not_of_names(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    for samples in (10**9, 64, 5 * 10**8):
        run.checkpoint(samples).touch()
    assert list(run.saved_checkpoints()) == [64, 5 * 10**8, 10**9]
    assert run.newest_checkpoint() == tmp_path / "checkpoints" / "samples=1000000000.ckpt"
    assert RunFolder.of_checkpoint(run.checkpoint(64)) == run
    assert RunFolder.of_checkpoint(tmp_path / "copied" / "weights.ckpt") is None


def test_a_row_cut_short_is_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.rows() == []
    run.config.write_text("seed: 3\n")
    run.checkpoints.mkdir()
    run.metrics.write_text("samples_seen,loss\n")
    assert not run.is_begun  # a start that failed: nothing was trained
    run.metrics.write_text("samples_seen,loss\n64,3.5\n128")
    assert run.rows() == [{"samples_seen": "64", "loss": "3.5"}]
    assert run.is_begun
    assert run.read_config() == {"seed": 3}
