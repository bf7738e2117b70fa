"""What a checkpoint says of its run is checked before a training goes on from it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from clip_la.errors import UserError
from clip_la.models import create_model, save_checkpoint
from clip_la.models.checkpoint import read_torch_file
from clip_la.train.checkpoint import read_block

BLOCK = {"run_id": "r", "samples_seen": 64, "budget_samples": 128, "schedule": "constant", "batch_size": 32, "seed": 0}


def checkpoint(path: Path, **changes: Any) -> Path:
    """A checkpoint as training writes it, but for its optimizer."""
    save_checkpoint(path, create_model("vit_pico", seed=0), **{**BLOCK, **changes})
    torch.save({**torch.load(path, weights_only=True), "optimizer_states": []}, path)
    return path


def block_of(path: Path) -> dict[str, Any]:
    return read_block(read_torch_file(path), path)


def test_a_whole_block_comes_back(tmp_path: Path) -> None:
    block = block_of(checkpoint(tmp_path / "a.ckpt"))
    assert {name: block[name] for name in BLOCK} == BLOCK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_seen": "64"}, "a.ckpt: samples_seen is '64', not a whole number of at least 0"),
        ({"samples_seen": -1}, "a.ckpt: samples_seen is -1, not a whole number of at least 0"),
        ({"budget_samples": 1.5}, "a.ckpt: budget_samples is 1.5, not a whole number"),
        ({"run_id": 3}, "a.ckpt: run_id is 3, not text"),
        ({"schedule": None}, "a.ckpt says nothing of its schedule: no training can go on from it"),
        ({"run_id": None, "samples_seen": None}, "a.ckpt says nothing of its run_id, samples_seen"),
    ],
)
def test_a_block_that_is_not_whole_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        block_of(checkpoint(tmp_path / "a.ckpt", **changes))
    other = checkpoint(tmp_path / "b.ckpt")
    content = torch.load(other, weights_only=True)
    content["clip_la"]["spec"]["image_layers"] = "2"
    torch.save(content, other)
    with pytest.raises(UserError, match=r"b.ckpt: model 'vit_pico': image_layers is '2', not a whole number"):
        block_of(other)
