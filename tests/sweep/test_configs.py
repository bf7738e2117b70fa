"""Every sweep file of configs/ can be read, and every run of it names a model and an attention that exist."""

from pathlib import Path

import pytest

from clip_la.models.flops import flops
from clip_la.models.registry import model_spec
from clip_la.sweep.costs import flops_per_sample
from clip_la.sweep.plan import read_plan

FILES = sorted((Path(__file__).parents[2] / "configs/sweep").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_of_a_sweep_file_can_be_made(path: Path) -> None:
    runs = read_plan(path)
    assert runs
    assert all(flops_per_sample(run) > 0 for run in runs)


def test_a_sweep_counts_patches_of_their_own_size(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "options: {model.name: vit_w64, model.image_size: 64, data.shards: x, budget_samples: 64}\n"
        "grid: {model.patch_size: [4, 8]}\n"
    )
    costs = [flops_per_sample(run) for run in read_plan(path)]
    assert costs == [flops(model_spec("vit_w64", image_size=64, patch_size=p))["total"] for p in (4, 8)]
