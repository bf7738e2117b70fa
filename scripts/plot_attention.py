#!/usr/bin/env python
"""Draws results/study/attention_scenes.png and .svg: each attention at its best rate on scenes, every seed as a point.

    python scripts/plot_attention.py [CSV ...]    # the tables that attention_table.py reads, see there

Runs that diverged are not drawn; an arm with such a run at any rate is marked.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attention_runs import (
    CONTROLS,
    GROUPS,
    MODEL,
    RESULTS,
    SOFTMAX,
    TASKS,
    TOKENS,
    Arm,
    arms_of,
    default_tables,
    read_runs,
)

from clip_la.atomic import atomic_write
from clip_la.cli import Parser, guarded
from clip_la.errors import UserError
from clip_la.scaling.plot import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "scenes"
# From Okabe and Ito's palette, with a marker each, so that no group rests on its colour alone.
STYLES = dict(zip(GROUPS, (("#0072B2", "o"), ("#009E73", "^"), ("#D55E00", "s")), strict=True))
# 1,600 pixels wide, legible at half of it.
WIDTH_INCHES, ROW_INCHES, MARGIN_INCHES, DPI = 8.0, 0.215, 0.9, 200
FONT_SIZE_PT, LABEL_SIZE_PT = 9.0, 7.5


def recalls(arm: Arm) -> list[float]:
    """Per cent, a number a seed, at the arm's best rate."""
    return [100 * value for value in arm.values(arm.best_lr, TASKS[TASK][0].column).values()]


def draw_group(axes: "Axes", arms: Sequence[Arm], first_row: int, group: str) -> None:
    """One group's heading and rows: a point a run, and the mean as a number at the right."""
    colour, marker = STYLES[group]
    across = axes.get_yaxis_transform()
    axes.text(0.01, first_row, group, transform=across, color=colour, weight="bold", va="center")
    for row, arm in enumerate(arms, first_row + 1):
        axes.axhline(row, color="#E4E4E4", linewidth=0.8, zorder=0)
        points = recalls(arm)
        axes.plot(points, [row] * len(points), marker, color=colour, markersize=6.5, markeredgecolor="white")
        number = f"{fmean(points):.1f}" if points else "diverged"
        axes.text(1.07, row, number, transform=across, va="center", ha="right", color=colour)
        if points and arm.has_diverged:
            axes.text(1.075, row, "*", transform=across, va="center", ha="left", color=colour)


def draw(arms: Sequence[Arm]) -> "Figure":
    """The figure: rows of arms by group, recall across, plain softmax as a line through all of them."""
    from matplotlib.figure import Figure

    num_rows = len(arms) + len(GROUPS)
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * num_rows + MARGIN_INCHES), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(28, 95)
    axes.set_ylim(num_rows - 0.3, -0.6)
    labels: dict[int, str] = {}
    row = 0
    for group in GROUPS:
        members = [arm for arm in arms if arm.group == group]
        draw_group(axes, members, row, group)
        labels |= {row + 1 + i: arm.label for i, arm in enumerate(members)}
        row += 1 + len(members)
    plain = fmean(recalls(next(arm for arm in arms if arm.label == SOFTMAX)))
    axes.axvline(plain, color=STYLES[CONTROLS][0], linewidth=1.0, linestyle="--", zorder=0)
    axes.text(plain, -0.7, "plain softmax", color=STYLES[CONTROLS][0], ha="center", va="bottom")
    axes.text(1.07, -0.7, "mean", transform=axes.get_yaxis_transform(), ha="right", va="bottom")
    axes.set_yticks(list(labels), list(labels.values()), family="DejaVu Sans Mono", fontsize=LABEL_SIZE_PT)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        "image recall@1 among 4,000 unseen scenes, % (a point a seed, best rate; * a run diverged)", loc="right"
    )
    return figure


def save(figure: "Figure", stem: Path) -> None:
    """Writes STEM.png and STEM.svg, equal bytes for equal input."""
    metadata: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}}
    for suffix, facts in metadata.items():
        with atomic_write(stem.with_suffix(suffix)) as stream:
            figure.savefig(stream, format=suffix[1:], dpi=DPI, metadata=facts, facecolor="white")
        print(f"wrote {stem.with_suffix(suffix)}")


def make(tables: Sequence[Path], out: Path) -> None:
    """Draws the runs of some tables. Raises UserError for a bad table, or one without softmax, the figure's line."""
    runs = [run for run in read_runs(tables) if (run.task, run.model, run.tokens) == (TASK, MODEL, TOKENS)]
    # One budget: that of most runs.
    samples = Counter(run.samples for run in runs).most_common(1)
    arms = arms_of(run for run in runs if run.samples == samples[0][0])
    if not any(arm.label == SOFTMAX and recalls(arm) for arm in arms):
        raise UserError(f"no run of {MODEL} with softmax on {TASK}: the figure has it as its line")
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "font.size": FONT_SIZE_PT}):
        save(draw(arms), out)


def run(argv: Sequence[str] | None) -> int:
    """Reads the tables, draws; 0, or a UserError."""
    parser = Parser(prog="plot_attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="*", metavar="CSV", help="tables of runs (default: results/study's)")
    stem = RESULTS / "study" / "attention_scenes"
    parser.add_argument("--out", type=Path, default=stem, help="without .png and .svg (default: %(default)s)")
    options = parser.parse_args(argv)
    make(options.tables or default_tables(), options.out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns the exit code."""
    return guarded("plot_attention", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
