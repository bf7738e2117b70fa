"""What clip_la touches of Lightning's private parts is there, does something, and is missed loudly."""

import ast
from pathlib import Path

import pytest
import pytorch_lightning as pl

from clip_la.train.lightning_private import ask_for_no_signals, process_rank

PACKAGE = Path(__file__).parents[2] / "clip_la"
HOME = "lightning_private.py"
PRIVATE = {"_get_rank", "_broadcast_sigterm_tensor"}


def test_the_loop_is_asked_for_no_signals_at_every_step() -> None:
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    loop = trainer.fit_loop.epoch_loop
    before = loop._broadcast_sigterm_tensor
    ask_for_no_signals(trainer)
    assert loop._broadcast_sigterm_tensor is not before
    assert loop._broadcast_sigterm_tensor() is None


def test_a_release_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    monkeypatch.delattr(type(trainer.fit_loop.epoch_loop), "_broadcast_sigterm_tensor")
    with pytest.raises(RuntimeError, match=rf"{pl.__version__} has no .*\._broadcast_sigterm_tensor"):
        ask_for_no_signals(trainer)
    monkeypatch.delattr("lightning_fabric.utilities.rank_zero._get_rank")
    with pytest.raises(RuntimeError, match=r"rank_zero\._get_rank"):
        process_rank()


@pytest.mark.parametrize(("variables", "rank"), [({}, 0), ({"RANK": "3"}, 3), ({"SLURM_PROCID": "2"}, 2)])
def test_the_rank_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch, variables: dict, rank: int) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == rank


def test_nothing_else_touches_them() -> None:
    elsewhere = [path for path in PACKAGE.rglob("*.py") if path.name != HOME]
    touching = [path for path in elsewhere if PRIVATE & set(names_in(path))]
    assert elsewhere
    assert touching == []


def names_in(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return [n.attr for n in nodes if isinstance(n, ast.Attribute)] + [n.id for n in nodes if isinstance(n, ast.Name)]
