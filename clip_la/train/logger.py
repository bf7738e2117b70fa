"""RUN/metrics.csv: one row a logging window, keyed by samples seen, continued when a run is resumed."""

import csv
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
        """Writes one row; `step` is the number of samples seen. Every row has the first row's columns."""
        row = {KEY: step, **metrics}
        is_new = not self._columns
        self._columns = self._columns or list(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self._columns, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    @rank_zero_only
    def _drop_rows_after(self, samples: int) -> None:
        if not self._path.is_file():
            return
        if samples == 0:
            self._path.unlink()
            return
        with self._path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            self._columns = list(reader.fieldnames or [])
            # A row that a kill cut short lacks values.
            kept = [row for row in reader if None not in row.values() and int(row[KEY]) <= samples]
        with atomic_write(self._path, "w") as stream:
            writer = csv.DictWriter(stream, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
