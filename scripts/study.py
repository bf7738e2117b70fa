#!/usr/bin/env python
"""Makes everything that results/study shows from its tables again: plots, tables, reports; no GPU, no network.

    python scripts/study.py                 # results/study
    python scripts/study.py --folder DIR    # tables elsewhere

Read are every CSV of points in the folder (`clip-la scaling points` writes them) and every prediction*.json (`clip-la
scaling predict`). Written beside them are a plot (PNG, SVG) and a page (HTML) for each data set and metric, tables.md,
and the part of README.md between its markers. The tables of attentions are drawn by plot_attention.py and put together
by attention_table.py, whose short tables go into the README of the repository in the same way.
"""

import argparse
import contextlib
import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import attention_table
import attention_text
import numpy as np
import plot_attention
import plot_curves
from attention_runs import arms_of, default_tables, read_runs

from clip_la.atomic import atomic_write
from clip_la.errors import EXIT_CODE, UserError
from clip_la.scaling.analysis import Analysis, analyse, group_points
from clip_la.scaling.by_place import difference_table, mean_table, measured, rate_table
from clip_la.scaling.fit import SAME_COMPUTE_LOG10, HeldOut, get_frontier
from clip_la.scaling.form_analysis import DEFAULT_LOSS, FormSeries
from clip_la.scaling.forms import FORMS
from clip_la.scaling.points import Selection, is_loss
from clip_la.scaling.points_table import REQUIRED, read_table, table_points
from clip_la.scaling.predict import outcome_table, outcome_text, outcomes, read_record
from clip_la.scaling.rates import BEST, at_rate
from clip_la.scaling.report import number, to_text
from clip_la.scaling.table import Table
from clip_la.scaling.verdict import verdict

FOLDER = Path(__file__).parents[1] / "results" / "study"
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
ATTENTION = Path("attention_scenes.csv")
NONE = "–"
HOW_COMPARED = (
    "Over pairs of runs that differ in the kind alone, by the law E = beta C^alpha, with 95 % intervals (Student's t, "
    "errors clustered by run). Each interval is 95 % by itself: of twenty kinds alike with the baseline one lies "
    "outside; the sentences below the plots in README.md judge the kinds of a plot together. The multiplier is how "
    "many times the baseline's compute the kind needs for an equal error: in the middle of the pairs, and at any error "
    "if both have one exponent. An error ratio is the geometric mean over pairs of runs, of "
    "each pair over its points first."
)
BEGIN, END = "<!-- made by scripts/study.py from here -->", "<!-- to here -->"


def find_tables() -> list[Path]:
    """The tables of points in the working folder, by name. Raises UserError where there is none."""
    found = []
    for path in sorted(Path().glob("*.csv")):
        with path.open(newline="", encoding="utf-8-sig") as stream:
            if set(REQUIRED) <= set(next(csv.reader(stream), ())):
                found.append(path)
    if not found:
        raise UserError(f"{Path.cwd()}: no table of points (CSV with the columns {', '.join(REQUIRED)})")
    return found


@dataclass(frozen=True)
class Part:
    """One data set and metric: its points, and an analysis for each baseline, plain softmax first."""

    selection: Selection
    analyses: tuple[Analysis, ...]
    problem: str | None

    @classmethod
    def of(cls, tables: Sequence[Path], target: str, metric: str) -> "Part":
        """Reads the points, takes each kind at its best rate, and fits; `problem` says why there is no fit."""
        selection = at_rate(table_points(tables, targets=[target], metric=metric), BEST)
        kinds = [*group_points(selection.points, "attention")]
        # Against plain softmax, which the kinds are to replace, and against softmax with the same additions.
        baselines = [None, *([CONTROL] if CONTROL in kinds[1:] else [])]
        try:
            return cls(selection, tuple(analyse(selection, baseline=each) for each in baselines), None)
        except UserError as error:
            return cls(selection, (), str(error))

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

    def means(self) -> str:
        """The metric of each kind by size and budget, as Markdown."""
        unit = "nats, less is better" if is_loss(self.selection.metric) else "%"
        lines = [f"Mean over seeds, {unit}; ± the standard deviation over (so many) runs; each kind at its best rate."]
        return "\n".join([*lines, "", mean_table(self.selection, self.kinds).markdown()])

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


def comparisons_table(parts: Sequence[Part]) -> Table:
    """How many times its baseline's compute each kind needs at equal error, and how far their exponents lie apart."""
    rows = []
    for part in parts:
        for found in (found for analysis in part.analyses for found in analysis.comparisons):
            # Against the control only what it controls.
            if found.baseline != SOFTMAX and (found.name, found.baseline) not in PAIRS:
                continue
            apart, shared = found.alpha_difference, found.shared_multiplier
            middle = found.multipliers[0] if found.multipliers else None
            rows.append(
                (
                    part.title,
                    f"`{found.name}` / `{found.baseline}`",
                    f"{found.num_pairs} ({found.num_runs})",
                    number(found.error_ratio, found.error_ratio_interval, ".2f"),
                    number(middle.value, middle.interval, ".2f") if middle else NONE,
                    number(shared.value, shared.interval, ".2f") if shared else NONE,
                    NONE if apart is None else number(apart, found.alpha_difference_interval, "+.3f"),
                )
            )
    header = (
        *("error of", "kind / baseline", "pairs (of runs)", "error ratio"),
        *("compute multiplier, middle", "compute multiplier, one exponent", "difference of exponents"),
    )
    return Table(header, tuple(rows))


def held_out_table(parts: Sequence[Part]) -> Table:
    """The error at the largest compute of each kind, and what three laws fitted to all smaller ones say of it."""
    form, choose_all = FORMS["parametric"], get_frontier("all")
    rows = []
    for part in parts:
        for kind, points in group_points(part.selection.points, "attention").items():
            compute, error = (np.array([getattr(point, name) for point in points]) for name in ("compute", "error"))
            found = [HeldOut.of(compute, error, get_frontier(name)) for name in ("all", "pareto")]
            # Tables of before have no number of parameters.
            if all(point.parameters for point in points):
                found.append(FormSeries.largest_held_out(form, points, choose_all, DEFAULT_LOSS["parametric"]))
            if not any(found):
                # A kind of a few points has no law, and nothing to predict from.
                continue
            said = [
                f"{each.predicted_error:.3g} ({100 * each.relative_error:+.0f} %)" if each else NONE for each in found
            ]
            largest = max(points, key=lambda point: point.compute)
            place = f"{largest.model}, {largest.samples_seen:,}"
            at_largest = error[np.log10(compute) > np.log10(compute.max()) - SAME_COMPUTE_LOG10]
            measured_there = f"{at_largest.mean():.3g} ({len(at_largest)})"
            rows.append((part.title, f"`{kind}`", place, measured_there, *said, *[NONE] * (3 - len(said))))
    header = (
        *("error of", "kind", "largest scale", "measured (runs)", "C^alpha, all points (off by)"),
        *("C^alpha, frontier (off by)", "L(N, D) (off by)"),
    )
    return Table(header, tuple(rows))


def predictions(parts: Sequence[Part]) -> str:
    """Each record of predictions against what was measured since, as Markdown; empty where there is none."""
    lines = []
    for path in sorted(Path().glob("prediction*.json")):
        made = read_record(path)
        part = next(
            (p for p in parts if (p.selection.target, p.selection.metric) == (made["target"], made["metric"])), None
        )
        if part is None:
            raise UserError(f"{path}: no table has {made['metric']} on {made['target']}")
        found = outcomes(made["predictions"], part.selection.along(made["axis"]), made["by"])
        head, _, _ = outcome_text(made, found).partition("\n\n")
        print(f"{path}: {outcome_text(made, found)}")
        lines += [f"{path}: {head}.", "", outcome_table(found).markdown(), ""]
    return "\n".join(lines).rstrip()


def section(title: str, body: str) -> list[str]:
    """A heading with its text and blank lines around; nothing for no text."""
    return [title, "", body, ""] if body else []


def tables_page(tables: Sequence[Path], parts: Sequence[Part], said: Sequence[str]) -> str:
    """tables.md: all tables of all parts, then the summary."""
    sources = ", ".join(f"[{path}]({path})" for path in tables)
    lines = ["# The study's tables", "", f"Made by `python scripts/study.py` from {sources}.", ""]
    for part in parts:
        lines += [f"## {part.title}", "", part.means(), ""]
        if part.problem:
            lines += [f"No laws: {part.problem}.", ""]
        else:
            lines += [f"![error against compute]({part.stem}.png) The same as a [page]({part.stem}.html).", ""]
        lines += section("### Paired differences", part.differences())
        lines += section("### Learning rates", part.rates())
        for analysis in part.analyses:
            lines += section(f"### Laws, against `{analysis.fits[0].name}`", f"```text\n{to_text(analysis)}\n```")
    return "\n".join([*lines, *said]).rstrip() + "\n"


def summary(parts: Sequence[Part]) -> list[str]:
    """The lines on what the laws say, and on how well they predict."""
    compared, held_out = comparisons_table(parts), held_out_table(parts)
    print(held_out.text())
    lines = section("### Compute at equal error", f"{HOW_COMPARED}\n\n{compared.markdown()}" if compared.rows else "")
    lines += section(
        "### The largest scale, predicted from the smaller ones", held_out.markdown() if held_out.rows else ""
    )
    return lines + section("### Predicted before it was measured", predictions(parts))


def readme_part(parts: Sequence[Part], said: Sequence[str]) -> str:
    """What README.md shows: means, plots, what they show in a sentence, and the summary."""
    lines: list[str] = []
    for part in parts:
        lines += [f"### {part.title}", "", part.means(), ""]
        if part.analyses:
            lines += [f"![error against compute]({part.stem}.png)", "", verdict(part.analyses[0]), ""]
    return "\n".join([*lines, *said]).rstrip()


def with_part(text: str, part: str, path: Path) -> str:
    """The text with what stands between the markers replaced. Raises UserError where they are not there once."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in tail:
        raise UserError(f"{path}: lacks the markers '{BEGIN}' and '{END}', once each")
    return f"{head}{BEGIN}\n\n{part}\n\n{END}{tail}"


def make(files: bool = True) -> dict[Path, str]:
    """Reads the tables in the working folder, writes plots and pages if `files`; returns the Markdown pages."""
    tables = find_tables()
    rows = [row for path in tables for row in read_table(path)]
    held = dict.fromkeys((row.fields["dataset"], row.fields["metric"]) for row in rows)
    order = sorted(held, key=lambda kind: [*METRICS].index(kind[1]) if kind[1] in METRICS else 0)
    parts = [Part.of(tables, *kind) for kind in order if kind[1] in METRICS]
    if not parts:
        raise UserError(f"{', '.join(map(str, tables))}: none of the metrics {', '.join(METRICS)}")
    if files:
        for part in parts:
            part.write_files(tables)
    said = summary(parts)
    texts = {Path("tables.md"): tables_page(tables, parts, said)}
    readme = Path("README.md")
    if readme.exists():
        texts[readme] = with_part(readme.read_text(encoding="utf-8"), readme_part(parts, said), readme)
    return texts


def main(argv: Sequence[str] | None = None) -> int:
    """Makes everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="holds the tables (default: results/study)")
    options = parser.parse_args(argv)
    try:
        if not options.folder.is_dir():
            raise UserError(f"no such folder: {options.folder}")
        # Origins of points are then named as beside the tables, wherever the repository lies.
        with contextlib.chdir(options.folder):
            texts = make()
            if plot_curves.CURVES.exists():
                plot_curves.make(plot_curves.CURVES, Path(plot_curves.CURVES.stem))
            if ATTENTION.exists():
                tables = default_tables(Path())
                plot_attention.make(tables, Path(ATTENTION.stem))
                # The tables of another folder are none of the repository's README and results.
                if Path().resolve() == FOLDER:
                    root = Path("../../README.md")
                    arms = arms_of(read_runs(tables))
                    attention_table.write_tables(arms, attention_table.RESULTS)
                    part = attention_text.summary(arms, attention_table.difference_rows(arms))
                    texts[root] = with_part(root.read_text(encoding="utf-8"), part, root)
            for path, text in texts.items():
                with atomic_write(path, "w") as stream:
                    stream.write(text)
                print(f"wrote {path}")
    except UserError as error:
        print(f"study: error: {error}", file=sys.stderr)
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
