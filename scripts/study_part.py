"""One data set and metric of the study, and the worlds that these belong to: what was trained on one corpus."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clip_la.errors import UserError
from clip_la.scaling.analysis import Analysis, analyse, group_points
from clip_la.scaling.by_place import difference_table, mean_table, measured, rate_table
from clip_la.scaling.points import Selection
from clip_la.scaling.points_table import read_table, table_points
from clip_la.scaling.rates import BEST, at_rate
from clip_la.scaling.rows import is_loss

SOFTMAX, CONTROL = "softmax", "softmax(conv=5,gate=linear,rope=axial)"
# Metric -> its part of a file's name. The loss last: it is far less noisy, so its laws are what the text ends on.
METRICS = {"top1": "top1", "image_retrieval_recall@1": "recall", "contrastive_loss": "loss"}
# Kinds whose difference is of interest, and what it is from: plain softmax, and softmax with all else alike.
PAIRS = (
    ("rala", SOFTMAX),
    ("rala", CONTROL),
    ("linear_mean", SOFTMAX),
    ("linear_mean(conv=5,gate=sigmoid,cls=softmax)", "softmax(conv=5,gate=sigmoid)"),
)


@dataclass(frozen=True)
class Part:
    """One data set and metric: its points, and an analysis for each baseline, plain softmax first."""

    selection: Selection
    analyses: tuple[Analysis, ...]
    problem: str | None

    @classmethod
    def of(cls, tables: Sequence[Path], target: str, metric: str) -> "Part":
        """Reads the points, takes each kind at its best rate, and fits; `problem` says why there is no fit."""
        selection = at_rate(table_points(tables, targets=[target], metric=metric, axis=None), BEST)
        kinds = [*group_points(selection.points, "attention")]
        # Against plain softmax, which the kinds are to replace, and against softmax with the same additions.
        baselines = [None, *([CONTROL] if CONTROL in kinds[1:] else [])]
        try:
            found = [analyse(selection, baseline=each) for each in baselines]
        except UserError as error:
            return cls(selection, (), str(error))
        # A control of too few points has no law: the next kind stands in its place, which says nothing new.
        controlled = [each for each in found[1:] if each.fits[0].name == CONTROL]
        return cls(selection, (found[0], *controlled), None)

    @property
    def kinds(self) -> list[str]:
        """The kinds that were measured, softmax first."""
        return [*group_points(measured(self.selection), "attention")]

    @property
    def title(self) -> str:
        """Data set and metric."""
        return f"{self.selection.target}, {self.selection.metric}"

    @property
    def stem(self) -> str:
        """The name of its files, without a suffix."""
        return f"{re.sub(r'[^a-zA-Z0-9]+', '_', self.selection.target)}_{METRICS[self.selection.metric]}"

    def write_files(self, tables: Sequence[Path]) -> None:
        """The plot and the page."""
        from clip_la.commands.scaling_report import main as report
        from clip_la.scaling.plot import save_plot

        if self.analyses:
            for path in save_plot(self.analyses[0], Path(self.stem)):
                print(f"wrote {path}")
            chosen = ["--target", self.selection.target, "--metric", self.selection.metric]
            report([*map(str, tables), "--format", "points", *chosen, "--out", f"{self.stem}.html"])

    def means(self, *, largest: bool = False) -> str:
        """The metric of each kind by size and budget, as Markdown; with `largest` at each size's largest budget."""
        unit = "nats, less is better" if is_loss(self.selection.metric) else "%"
        head = f"Mean over seeds, {unit}; ± the standard deviation over (so many) runs; each kind at its best rate"
        shown = self.selection
        if largest:
            most: dict[str, int] = {}
            for point in measured(shown):
                most[point.model] = max(point.samples_seen, most.get(point.model, 0))
            points, off_law = (
                tuple(p for p in own if p.samples_seen == most[p.model]) for own in (shown.points, shown.off_law)
            )
            shown = replace(shown, points=points, off_law=off_law)
            head += ", the largest budget of each size (all of them: [tables.md](tables.md))"
        return f"{head}.\n\n{mean_table(shown, self.kinds).markdown()}"

    def differences(self) -> str:
        """The paired differences of PAIRS that were measured, as Markdown; empty where none was."""
        pairs = {f"`{a}` − `{b}`": (a, b) for a, b in PAIRS if a in self.kinds and b in self.kinds}
        table = difference_table(self.selection, pairs)
        if not table.rows:
            return ""
        unit = "nats" if is_loss(self.selection.metric) else "points of per cent"
        head = f"Differences over seeds that both have, in {unit}, with Student's 95 % interval over these pairs."
        return f"{head}\n\n{table.markdown()}"

    def rates(self) -> str:
        """The best rate where several were tried, as Markdown."""
        table = rate_table(self.selection)
        return table.markdown() if table.rows else "One learning rate for each kind, size and budget: none was tuned."


@dataclass(frozen=True)
class World:
    """What was trained on one corpus, or on one mixture: the tables that hold it, its parts, those of losses last."""

    corpora: tuple[str, ...]
    tables: tuple[Path, ...]
    parts: tuple[Part, ...]

    @property
    def title(self) -> str:
        """What its models were trained on."""
        # A mixture stands in one field with spaces between its folders.
        names = [", ".join(f"`{folder}`" for folder in corpus.split()) for corpus in self.corpora if corpus]
        return f"Trained on {'; on '.join(names)}" if names else "Trained on data that the tables do not name"

    @property
    def facts(self) -> str:
        """Its tables, and what its runs share, as a line of Markdown."""
        points = [point for part in self.parts for point in measured(part.selection)]

        def text(name: str) -> str:
            return " or ".join(f"{value:,}" for value in sorted({getattr(point, name) or 0 for point in points}))

        sources = ", ".join(f"[{path.name}]({path})" for path in self.tables)
        shape = f"{text('image_size')} px, {text('tokens')} image tokens, batch {text('batch_size')}"
        return f"{sources}: {shape}, {text('train_pairs')} pairs."


def worlds_of(tables: Sequence[Path]) -> list[World]:
    """The worlds of some tables of points, of few corpora before those of many.

    Raises UserError where a table cannot be read, none has one of METRICS, or two parts would share their files.
    """
    corpora: dict[str, set[str]] = {}
    sources: dict[str, list[Path]] = {}
    held: dict[tuple[str, str], None] = {}
    for path in tables:
        for row in read_table(path):
            dataset, metric = row.fields["dataset"], row.fields["metric"]
            if metric in METRICS:
                held[dataset, metric] = None
                corpora.setdefault(dataset, set()).add(row.text("train_data") or "")
                if path not in sources.setdefault(dataset, []):
                    sources[dataset].append(path)
    if not held:
        raise UserError(f"{', '.join(map(str, tables))}: none of the metrics {', '.join(METRICS)}")
    worlds = []
    for own in dict.fromkeys(tuple(sorted(each)) for each in corpora.values()):
        datasets = [dataset for dataset, each in corpora.items() if tuple(sorted(each)) == own]
        kinds = [(dataset, metric) for metric in METRICS for dataset in datasets if (dataset, metric) in held]
        paths = dict.fromkeys(path for dataset in datasets for path in sources[dataset])
        worlds.append(World(own, tuple(paths), tuple(Part.of(tables, *kind) for kind in kinds)))
    parts = [part for world in worlds for part in world.parts]
    first = {part.stem: part.title for part in reversed(parts)}
    for part in parts:
        if first[part.stem] != part.title:
            files = f"the files {part.stem}.png, .svg and .html"
            raise UserError(f"{first[part.stem]} and {part.title} would both be drawn into {files}: rename a data set")
    return sorted(worlds, key=lambda world: len(" ".join(world.corpora).split()))
