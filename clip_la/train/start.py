"""Where a run begins: at nothing, at its own newest checkpoint, or at a checkpoint of another run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_la.errors import UserError
from clip_la.runs import RunFolder
from clip_la.train.checkpoint import check_same_model, latest_valid, read_block
from clip_la.train.options import RunOptions
from clip_la.train.task import ContrastiveTask


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint a run goes on from and what it says of itself; None and {} for a run from the beginning.

    `is_branch` tells another run's checkpoint from one of this run's own.
    """

    checkpoint: Path | None = None
    block: dict[str, Any] | None = None
    is_branch: bool = False

    @property
    def samples_seen(self) -> int:
        return self.block["samples_seen"] if self.block else 0


def refuse_existing_run(out: Path) -> None:
    """Raises UserError where `out` holds a run, so that nothing is overwritten unasked."""
    if RunFolder(out).is_begun:
        raise UserError(f"{out} holds a run already: add --resume to go on with it, or give another --out")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out must name a folder")


def find_resume_point(task: ContrastiveTask, options: RunOptions, *, report: Callable[[str], None]) -> ResumePoint:
    """Chooses the start of a run and checks that it fits; `report` is told of damaged checkpoints that are skipped.

    Raises UserError for a checkpoint of another architecture, batch size, seed or schedule.
    """
    run, seed = RunFolder(Path(options.out)), options.seed
    own = latest_valid(run, report) if options.resume else None
    if own is not None:
        block = read_block(own)
        _check_resume(own, block, task, seed)
        return ResumePoint(own, block)
    if options.branch_from:
        parent = Path(options.branch_from)
        block = read_block(parent)
        _check_branch(parent, block, task, seed)
        return ResumePoint(parent, block, is_branch=True)
    if options.resume:
        report(f"no whole checkpoint in {run.checkpoints}: starting from the beginning")
    return ResumePoint()


def _check_same(path: Path, block: dict[str, Any], task: ContrastiveTask, seed: int) -> None:
    check_same_model(path, block, task.model.spec)
    for key, wanted in (("batch_size", task.batch_size), ("seed", seed), ("loss", task.loss_name)):
        if block.get(key) != wanted:
            raise UserError(
                f"{path} was trained with {key} {block.get(key)}, not {wanted}: the run cannot go on from it"
            )


def _check_resume(path: Path, block: dict[str, Any], task: ContrastiveTask, seed: int) -> None:
    _check_same(path, block, task, seed)
    if block["schedule"] != task.schedule.name:
        raise UserError(f"{path} has schedule {block['schedule']}, not {task.schedule.name}; a branch can change it")
    if task.schedule.name != "constant" and block["budget_samples"] != task.budget_samples:
        raise UserError(
            f"{path} has budget_samples {block['budget_samples']:,}, not {task.budget_samples:,}: "
            "only a run of schedule constant can be given another budget"
        )


def _check_branch(path: Path, block: dict[str, Any], task: ContrastiveTask, seed: int) -> None:
    _check_same(path, block, task, seed)
    if block["schedule"] != "constant":
        raise UserError(f"{path} has schedule {block['schedule']}: only a run of schedule constant can be branched")
    latest = task.schedule.cooldown_start
    if block["samples_seen"] > latest or block["samples_seen"] >= task.budget_samples:
        raise UserError(
            f"{path} has seen {block['samples_seen']:,} samples, too many: with budget_samples {task.budget_samples:,} "
            f"and cooldown_samples {task.schedule.cooldown_samples:,} a branch can leave up to {latest:,}"
        )
