"""RUN/metrics.csv: one row a logging window, keyed by samples seen, continued when a run is resumed."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from clip_la.atomic import atomic_write
from clip_la.runs import SAMPLES_SEEN as KEY


class CsvMetrics(Logger):
    """Appends rows to a CSV file. Lightning's own logger deletes the file on resume and counts steps.

    Args:
        path: the file; its folder is made when the first row is written.
        resume_samples: samples in the checkpoint the run goes on from; later rows are dropped, 0 starts a new file.
    """

    def __init__(self, path: Path, resume_samples: int = 0) -> None:
        super().__init__()
        self._path = path
        self._columns: list[str] = []
        self._drop_rows_after(resume_samples)

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: RUN/config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Writes one row; `step` is the number of samples seen. A figure that the table lacks becomes a column."""
        row = {KEY: step, **metrics}
        more = [name for name in row if name not in self._columns]
        if more:
            # Rows of a run that an earlier version began have no value there.
            self._rewrite(math.inf, more)
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self._columns, lineterminator="\n").writerow(row)

    @rank_zero_only
    def _drop_rows_after(self, samples: int) -> None:
        if self._path.is_file() and samples == 0:
            self._path.unlink()
        elif self._path.is_file():
            self._rewrite(samples)

    def _rewrite(self, last_samples: float, more_columns: Sequence[str] = ()) -> None:
        """Writes the table anew with the rows up to `last_samples`, and further columns."""
        kept: list[dict[str, str]] = []
        if self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                self._columns = list(reader.fieldnames or [])
                # A row that a kill cut short lacks values.
                kept = [row for row in reader if None not in row.values() and int(row[KEY]) <= last_samples]
        self._columns += more_columns
        with atomic_write(self._path, "w") as stream:
            writer = csv.DictWriter(stream, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
