"""Where a run begins: at nothing, at its own newest checkpoint, or at a checkpoint of another run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_la.errors import UserError
from clip_la.runs import RunFolder
from clip_la.train.checkpoint import FIXED, check_same_model, read_block
from clip_la.train.options import RunOptions
from clip_la.train.task import ContrastiveTask


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint a run goes on from, and what it says of itself; None and {} for a run from the beginning.

    `is_branch` tells another run's checkpoint from one of this run's own.
    """

    checkpoint: Path | None = None
    block: dict[str, Any] = field(default_factory=dict)
    is_branch: bool = False

    @property
    def samples_seen(self) -> int:
        """Pairs that have gone into the weights; 0 at the beginning."""
        return self.block.get("samples_seen", 0)

    @property
    def has_average(self) -> bool:
        """Whether the checkpoint has averaged weights beside the trained ones."""
        return self.block.get("ema_samples") is not None

    def check(self, task: ContrastiveTask, seed: int) -> None:
        """Raises UserError naming the file and what does not fit: architecture, batch size, seed, loss or schedule."""
        if self.checkpoint is None:
            return
        path, block = self.checkpoint, self.block
        check_same_model(path, block, task.model.spec)
        for key, wanted in (("batch_size", task.batch_size), ("seed", seed), ("loss", task.loss_name)):
            if block.get(key) != wanted:
                raise UserError(
                    f"{path} was trained with {key} {block.get(key)}, not {wanted}: the run cannot go on from it"
                )
        # These decide which parameters the optimiser's state is of, and what it holds; older checkpoints do not say.
        for key, default in FIXED.items():
            saved, wanted = block.get(key, default), getattr(task.options, key)
            if saved != wanted:
                hint = "init_from begins a new run with its weights"
                raise UserError(f"{path} was trained with {key} {saved}, not {wanted}: no run goes on from it; {hint}")
        (self._check_branch if self.is_branch else self._check_schedule)(task)

    def _check_schedule(self, task: ContrastiveTask) -> None:
        """A run goes on under its own schedule; the rates it has had belong to its budget."""
        path, block, schedule = self.checkpoint, self.block, task.schedule.name
        if block["schedule"] != schedule:
            raise UserError(f"{path} has schedule {block['schedule']}, not {schedule}; a branch can change it")
        if schedule != "constant" and block["budget_samples"] != task.budget_samples:
            raise UserError(
                f"{path} has budget_samples {block['budget_samples']:,}, not {task.budget_samples:,}: "
                "only a run of schedule constant can be given another budget"
            )

    def _check_branch(self, task: ContrastiveTask) -> None:
        """A branch leaves a constant rate, before its own begins to fall: then it equals a run of its own schedule."""
        path, block = self.checkpoint, self.block
        if block["schedule"] != "constant":
            raise UserError(f"{path} has schedule {block['schedule']}: only a run of schedule constant can be branched")
        latest = task.schedule.cooldown_start
        if self.samples_seen > latest or self.samples_seen >= task.budget_samples:
            raise UserError(
                f"{path} has seen {self.samples_seen:,} samples, too many: with budget_samples "
                f"{task.budget_samples:,} and cooldown_samples {task.schedule.cooldown_samples:,} a branch can leave "
                f"up to {latest:,}"
            )


def find_resume_point(
    task: ContrastiveTask,
    options: RunOptions,
    *,
    read: Callable[[Path], dict[str, Any]],
    report: Callable[[str], None],
) -> ResumePoint:
    """Chooses the start of a run and checks that it fits.

    Args:
        task: what is to be trained.
        options: the run's folder, its seed, and whether it resumes or branches off.
        read: a file -> the checkpoint in it; UserError for one that is damaged. The last that it reads is the start.
        report: gets a line on each damaged checkpoint that is skipped, and on a run that has none.

    Raises UserError for a checkpoint of another architecture, batch size, seed, loss or schedule.
    """
    run, start = RunFolder(Path(options.out)), None
    for path in reversed(run.saved_checkpoints().values()) if options.resume else ():
        try:
            checkpoint = read(path)
        except UserError:
            report(f"skipping the damaged checkpoint {path}")
            continue
        start = ResumePoint(path, read_block(checkpoint, path))
        break
    if start is None and options.branch_from:
        parent = Path(options.branch_from)
        start = ResumePoint(parent, read_block(read(parent), parent), is_branch=True)
    elif start is None and options.resume:
        report(f"no whole checkpoint in {run.checkpoints}: starting from the beginning")
    start = start or ResumePoint()
    start.check(task, options.seed)
    return start
