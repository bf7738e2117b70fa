"""A run's folder: what is called how and lies where in it. The one place that knows; plain Python, without torch.

```
RUN/config.yaml                       every option as it was resolved
RUN/metrics.csv                       one row a logging window, keyed by samples seen
RUN/checkpoints/samples=000012800.ckpt
RUN/results.jsonl                     result lines of zero-shot evaluations
RUN/tensorboard/                      event files
```
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clip_la.errors import UserError

CONFIG, METRICS, RESULTS = "config.yaml", "metrics.csv", "results.jsonl"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
# The weights of a checkpoint: as they were trained, or their average, which runs with `model.ema_samples` save too.
# "ema" is its key in the file, and what result lines say of it in their field `weights`.
WEIGHTS = TRAINED, EMA = "trained", "ema"
# In config.yaml of a conversion's stage: the checkpoint that it starts from. No run of `clip-la train` has it.
BEGINS_WITH = "begins_with"
# The column of metrics.csv that its rows are in order of.
SAMPLES_SEEN = "samples_seen"
_CHECKPOINT = re.compile(r"samples=(\d+)\.ckpt")


def checkpoint_name(samples: int) -> str:
    """The file name of a checkpoint after `samples` samples; names sort as the numbers do (up to 10^9)."""
    return f"samples={samples:09d}.ckpt"


def samples_of(checkpoint: Path) -> int | None:
    """The samples that a checkpoint's file name says, None for a file that is called otherwise."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def _has_rows(table: Path) -> bool:
    """Whether a file has a line below its first, whatever the bytes: a damaged table is a run's too."""
    return table.is_file() and len(table.read_bytes().split(b"\n", 1)[-1]) > 0


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, which need not exist yet."""

    path: Path

    @staticmethod
    def of_checkpoint(checkpoint: Path) -> "RunFolder | None":
        """The run that a checkpoint lies in (RUN/checkpoints/FILE), or None."""
        folder = checkpoint.parent
        return RunFolder(folder.parent) if folder.name == CHECKPOINTS else None

    @property
    def config(self) -> Path:
        """The options that the run was started with, as YAML."""
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        """The table of losses, rates and times."""
        return self.path / METRICS

    @property
    def results(self) -> Path:
        """The result lines."""
        return self.path / RESULTS

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def is_begun(self) -> bool:
        """Whether anything was trained here: there is a checkpoint, or a row of metrics.

        A start that failed leaves config.yaml and event files; the corrected command may write over those.
        """
        return bool(self.saved_checkpoints()) or _has_rows(self.metrics)

    def check_is_no_file(self) -> None:
        """Raises UserError where a file lies at the path of the folder."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out must name a folder")

    def check_not_begun(self) -> None:
        """Raises UserError for a folder in which something was trained: nothing is overwritten unasked."""
        if self.is_begun:
            raise UserError(f"{self.path} holds a run already: add --resume to go on with it, or give another --out")

    def checkpoint(self, samples: int) -> Path:
        """The file of the checkpoint after `samples` samples, whether or not it is there."""
        return self.checkpoints / checkpoint_name(samples)

    def saved_checkpoints(self) -> dict[int, Path]:
        """Samples seen -> file, fewest samples first."""
        files = [(samples_of(path), path) for path in self.checkpoints.glob("samples=*.ckpt")]
        return dict(sorted((samples, path) for samples, path in files if samples is not None))

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint after most samples, whole or not, or None."""
        return next(reversed(self.saved_checkpoints().values()), None)

    def rows(self) -> list[dict[str, str]]:
        """The whole rows of metrics.csv, fewest samples first; a row that a kill cut short lacks values.

        Raises OSError, UnicodeDecodeError or csv.Error for a file that cannot be read; [] where there is none.
        """
        if not self.metrics.is_file():
            return []
        with self.metrics.open(newline="", encoding="utf-8") as stream:
            return [row for row in csv.DictReader(stream) if None not in row.values()]

    def read_config(self) -> Any:
        """What config.yaml holds. Raises OSError, UnicodeDecodeError, yaml.YAMLError or RecursionError."""
        return yaml.safe_load(self.config.read_text(encoding="utf-8"))
