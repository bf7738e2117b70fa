"""A sweep's runs as SLURM jobs, one each, through submitit (`pip install 'clip_la[slurm]'`)."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_la.atomic import atomic_write
from clip_la.errors import UserError
from clip_la.sweep.worker import train_one

SLURM = "slurm"
# Of a job that asks for nothing else. A job at its time limit is queued again, and its run resumes.
DEFAULTS: dict[str, Any] = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 1, "cpus_per_task": 8, "timeout_min": 720}
POLL_S = 5.0


class TrainJob:
    """What a job does. submitit sends it to the job as a pickle and asks for `checkpoint` at the time limit."""

    def __call__(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Runs `clip-la train` with these arguments, which resume; as worker.train_one."""
        return train_one(list(arguments))

    def checkpoint(self, arguments: Sequence[str]) -> Any:
        """The same again: the run goes on from its own newest checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, arguments)


class JobPlace:
    """A place of a sweep whose runs are jobs; a sweep that was killed finds its jobs again and waits for them.

    Args:
        folder: of the jobs' logs, on a file system that all nodes see.
        settings: of submitit.AutoExecutor.update_parameters.
        cluster: submitit's name for what runs the jobs.

    Raises:
        UserError: submitit is not installed, SLURM is not there, or a setting is unknown.
    """

    runs_per_gpu = 1
    gpu: str | None = None

    def __init__(self, folder: Path, settings: dict[str, Any], cluster: str = SLURM, poll_s: float = POLL_S) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("--launcher slurm needs submitit: pip install 'clip_la[slurm]'") from None
        self._folder, self._poll_s = folder.absolute(), poll_s
        self._job: Any = None
        try:
            self._executor = submitit.AutoExecutor(self._folder, cluster=cluster)
            self._executor.update_parameters(**settings)
        except RuntimeError as error:
            raise UserError(f"--launcher slurm: {' '.join(str(error).split())}") from None
        except (NameError, ValueError, AssertionError) as error:
            raise UserError(f"--slurm: {str(error).splitlines()[0]}") from None

    def train(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Submits the run and waits for its end: {"error": one line or None, "seconds": wall time}."""
        note = self._folder / f"{name}.job"
        self._job = self._executor._executor.job_class(self._folder, note.read_text()) if note.is_file() else None
        # One that ended meanwhile may have been stopped half-way: its run is resumed.
        if self._job is None or self._job.done():
            self._job = self._executor.submit(TrainJob(), list(arguments))
            with atomic_write(note, "w") as stream:
                stream.write(self._job.job_id)
        while not self._job.done():
            time.sleep(self._poll_s)
        note.unlink()
        try:
            return dict(self._job.result())
        except RuntimeError:  # submitit's own: the job died, or could not start
            return {"error": f"job {self._job.job_id} ended without a result; see {self._job.paths.stderr}"}

    def rest(self) -> None:
        """Nothing: a job ends with its run."""

    def close(self) -> None:
        """Cancels the job that is at work; the training saves before it stops."""
        if self._job is not None and not self._job.done():
            self._job.cancel(check=False)


def job_places(out: Path, count: int, settings: Sequence[str]) -> list[JobPlace]:
    """`count` places, so many jobs at a time; `settings` are KEY=VALUE of sbatch, or of submitit for all clusters.

    Raises:
        UserError: as JobPlace; a setting without "=".
    """
    given: dict[str, Any] = dict(DEFAULTS)
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--slurm takes KEY=VALUE, not '{text}'")
        shared = key in {*DEFAULTS, "mem_gb", "name", "stderr_to_stdout"}
        given[key if shared else f"{SLURM}_{key.removeprefix(SLURM + '_')}"] = (
            int(value) if value.isdecimal() else value
        )
    return [JobPlace(out / "logs" / SLURM, given) for _ in range(count)]
