"""Tables as plain text and as Markdown, and the table of results: a row a checkpoint, a column a data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clip_la.errors import UserError
from clip_la.scaling.results import DEFAULT_METRIC
from clip_la.scaling.rows import ResultRow

KILO = 1000.0
SUFFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


@dataclass(frozen=True)
class Table:
    """Cells as text. Cells that begin with a digit or a sign are set right, the others left."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def _widths(self) -> list[int]:
        return [max(len(cell) for cell in column) for column in zip(self.header, *self.rows, strict=True)]

    def _is_number(self, column: int) -> bool:
        return all(row[column][:1].isdigit() or row[column][:1] in ("-", "+") for row in self.rows)

    def _padded(self, cells: Sequence[str]) -> list[str]:
        widths = self._widths()
        numeric = [self._is_number(column) for column in range(len(widths))]
        sized = zip(cells, widths, numeric, strict=True)
        return [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in sized]

    def text(self) -> str:
        """Columns two spaces apart under a ruled header, for a terminal."""
        rule = "  ".join("-" * width for width in self._widths())
        lines = ["  ".join(self._padded(cells)).rstrip() for cells in (self.header, *self.rows)]
        return "\n".join([lines[0], rule, *lines[1:]])

    def markdown(self) -> str:
        """A Markdown table, its numbers set right."""
        ruler = [
            "-" * (width - 1) + (":" if self._is_number(column) else "-") for column, width in enumerate(self._widths())
        ]
        lines = [self._padded(self.header), ruler, *(self._padded(row) for row in self.rows)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_suffix(value: float) -> str:
    """Three significant digits with a decimal suffix: 160000 -> "160k", 2.4e13 -> "24T"."""
    power = 0
    # 999.5 rounds up to four digits.
    while abs(value) >= 999.5 and power < len(SUFFIXES) - 1:
        value /= KILO
        power += 1
    return f"{value:.3g}{SUFFIXES[power]}"


def _cells(row: ResultRow | None, metric: str, chance: bool) -> list[str]:
    """The metric of a line in per cent with its interval, and with `chance` how many times 1 / classes it is."""
    per_cent = times = "-"
    if row is not None and metric in row.fields["metrics"]:
        entry = row.fields["metrics"][metric]
        per_cent = f"{100 * entry['value']:.1f}"
        if entry.get("low") is not None and entry.get("high") is not None:
            per_cent += f" [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"
        if row.fields.get("num_classes"):
            times = f"{entry['value'] * row.fields['num_classes']:.1f}"
    return [per_cent, times] if chance else [per_cent]


def _columns(rows: Sequence[ResultRow]) -> Callable[[ResultRow], str]:
    """The column of a row: its data set, with the task where these rows hold several tasks on it."""
    tasks: dict[str, set[str]] = {}
    for row in rows:
        tasks.setdefault(str(row.fields["dataset"]), set()).add(str(row.fields.get("task")))

    def column_of(row: ResultRow) -> str:
        dataset, task = str(row.fields["dataset"]), str(row.fields.get("task"))
        return f"{dataset} ({task})" if len(tasks.get(dataset, ())) > 1 and task in tasks[dataset] else dataset

    return column_of


def results_table(rows: Sequence[ResultRow], *, metric: str = DEFAULT_METRIC, chance: bool = True) -> Table:
    """The table of results: model, attention, schedule, samples seen, compute, and the metric on each data set.

    Args:
        rows: result lines, from `read_results`; of lines on the same checkpoint, data set and task the last counts. A
            data set with the metric from several tasks has a column for each.
        metric: a key of `metrics`, a fraction; shown in per cent with its 95 % interval.
        chance: adds for each data set how many times chance (1 / classes) the metric is.

    Rows are ordered by attention as first met, then compute. Raises UserError where there are no lines.
    """
    if not rows:
        raise UserError("no results to put in a table")
    column_of = _columns([row for row in rows if metric in row.fields["metrics"]])
    datasets = list(dict.fromkeys(map(column_of, rows)))
    kinds = list(dict.fromkeys(str(row.fields["attention"]) for row in rows))
    checkpoints: dict[tuple, dict[str, ResultRow]] = {}
    for row in rows:
        fields = row.fields
        key = (
            kinds.index(str(fields["attention"])),
            (fields["flops_per_sample"] or 0) * (fields["samples_seen"] or 0),
            str(fields["model"]),
            str(fields["run_id"]),
            str(fields["schedule"]),
        )
        own = checkpoints.setdefault(key, {})
        if metric in fields["metrics"] or column_of(row) not in own:
            own[column_of(row)] = row
    header = ["model", "attention", "schedule", "samples seen", "compute (FLOPs)"]
    for dataset in datasets:
        header.append(f"{metric} % {dataset}")
        if chance:
            header.append("x chance")
    cells = []
    for key, by_dataset in sorted(checkpoints.items(), key=lambda item: item[0]):
        _, compute, model, _, schedule = key
        fields = next(iter(by_dataset.values())).fields
        line = [
            model,
            str(fields["attention"]),
            schedule,
            with_suffix(fields["samples_seen"] or 0),
            with_suffix(compute),
        ]
        for dataset in datasets:
            line += _cells(by_dataset.get(dataset), metric, chance)
        cells.append(tuple(line))
    return Table(tuple(header), tuple(cells))
