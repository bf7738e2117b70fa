"""Every sweep file of configs/ can be read, and every run of it names a model and an attention that exist."""

from pathlib import Path

import pytest

from clip_la.sweep.costs import flops_per_sample
from clip_la.sweep.plan import read_plan

FILES = sorted((Path(__file__).parents[2] / "configs/sweep").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_of_a_sweep_file_can_be_made(path: Path) -> None:
    runs = read_plan(path)
    assert runs
    assert all(flops_per_sample(run) > 0 for run in runs)
