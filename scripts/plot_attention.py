#!/usr/bin/env python
"""Draws results/study/attention_scenes.csv: the best rate of each attention, mean over seeds, every run as a point.

    python scripts/plot_attention.py            # writes attention_scenes.png and .svg beside the table
    python scripts/plot_attention.py --table    # prints the best arms of each group as Markdown instead

Runs that diverged enter no mean; an arm with such a run at any rate is marked.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from clip_la.atomic import atomic_write
from clip_la.models.attention.pattern import layer_choices
from clip_la.scaling.plot import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLE = Path(__file__).parents[1] / "results" / "study" / "attention_scenes.csv"
METRIC = "image_recall@1"
OK = "ok"
NUM_LAYERS = 12
SOFTMAX = "softmax"
# From Okabe and Ito's palette, with a marker each, so that no group rests on its colour alone.
GROUPS = {
    "softmax, and its controls": ("#0072B2", "o"),
    "one tower linear": ("#009E73", "^"),
    "both towers linear": ("#D55E00", "s"),
}
CONTROLS, ONE_TOWER, BOTH_TOWERS = GROUPS
# 1,600 pixels wide, legible at half of it.
WIDTH_INCHES, ROW_INCHES, MARGIN_INCHES, DPI = 8.0, 0.215, 0.9, 200
FONT_SIZE_PT, LABEL_SIZE_PT = 9.0, 7.5
# Of the printed table: so many of each group, and these.
BEST_ROWS = 3
PLAIN = (SOFTMAX, "image: linear_mean", "linear_mean", "linear")


@dataclass(frozen=True)
class Arm:
    """One attention at its best rate: recall of each seed in [0, 1], none if all diverged; forward GFLOPs a pair."""

    label: str
    group: str
    lr: float
    recalls: tuple[float, ...]
    has_diverged: bool
    gflops: float

    @property
    def mean(self) -> float:
        """Mean recall over seeds; 0 if every run diverged."""
        return fmean(self.recalls) if self.recalls else 0.0


def is_softmax(plan: str) -> bool:
    """Whether every layer of a tower is softmax, whatever stands around it."""
    return {choice.kind for choice in layer_choices(plan, NUM_LAYERS)} == {SOFTMAX}


def group_of(image: str, text: str) -> str:
    """A group of GROUPS for the plans of both towers."""
    return (BOTH_TOWERS, ONE_TOWER, CONTROLS)[is_softmax(image) + is_softmax(text)]


def label_of(image: str, text: str) -> str:
    """The plan itself, and the tower that has it where the other one has plain softmax."""
    if image == text:
        return image
    return f"text: {text}" if image == SOFTMAX else f"image: {image}"


def best_rate(runs: Sequence[dict[str, str]]) -> Arm:
    """The arm of these runs (one attention, any rates and seeds) at the rate whose mean recall is highest."""
    image, text = runs[0]["image_attention"], runs[0]["text_attention"]
    by_rate: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        if run["outcome"] == OK:
            by_rate[float(run["lr"])].append(float(run[METRIC]))
    lr = max(by_rate, key=lambda rate: fmean(by_rate[rate]), default=0.0)
    gflops = float(runs[0]["flops_per_sample"]) / 1e9
    has_diverged = any(run["outcome"] != OK for run in runs)
    return Arm(label_of(image, text), group_of(image, text), lr, tuple(by_rate[lr]), has_diverged, gflops)


def read_arms(path: Path) -> list[Arm]:
    """All arms of the table, group by group, the highest mean recall first."""
    runs: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as stream:
        for run in csv.DictReader(stream):
            runs[run["image_attention"], run["text_attention"]].append(run)
    order = list(GROUPS)
    return sorted(map(best_rate, runs.values()), key=lambda arm: (order.index(arm.group), -arm.mean))


def markdown(arms: Sequence[Arm]) -> str:
    """The best arms of each group, and the plain kinds, as a table: percent, each seed in brackets."""
    lines = ["| attention | image recall@1 %, mean (seeds) | forward GFLOPs a pair |", "|---|---|---|"]
    for group in GROUPS:
        members = [arm for arm in arms if arm.group == group and arm.recalls]
        lines.append(f"| **{group}** | | |")
        for arm in [arm for i, arm in enumerate(members) if i < BEST_ROWS or arm.label in PLAIN]:
            seeds = ", ".join(f"{100 * recall:.1f}" for recall in arm.recalls)
            note = " *" if arm.has_diverged else ""
            lines.append(f"| `{arm.label}` | {100 * arm.mean:.1f}{note} ({seeds}) | {arm.gflops:.2f} |")
    return "\n".join(lines)


def draw_group(axes: "Axes", arms: Sequence[Arm], first_row: int, group: str) -> None:
    """One group's heading and rows: a point a run, and the mean as a number at the right."""
    colour, marker = GROUPS[group]
    across = axes.get_yaxis_transform()
    axes.text(0.01, first_row, group, transform=across, color=colour, weight="bold", va="center")
    for row, arm in enumerate(arms, first_row + 1):
        axes.axhline(row, color="#E4E4E4", linewidth=0.8, zorder=0)
        points = [100 * each for each in arm.recalls]
        axes.plot(points, [row] * len(points), marker, color=colour, markersize=6.5, markeredgecolor="white")
        number = f"{100 * arm.mean:.1f}" if points else "diverged"
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
    plain = 100 * next(arm for arm in arms if arm.label == SOFTMAX).mean
    axes.axvline(plain, color=GROUPS[CONTROLS][0], linewidth=1.0, linestyle="--", zorder=0)
    axes.text(plain, -0.7, "plain softmax", color=GROUPS[CONTROLS][0], ha="center", va="bottom")
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


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the table, draws or prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, nargs="?", default=TABLE, help="table of runs (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print the best arms as Markdown, draw nothing")
    options = parser.parse_args(argv)
    arms = read_arms(options.csv)
    if options.table:
        print(markdown(arms))
        return
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "font.size": FONT_SIZE_PT}):
        save(draw(arms), options.csv.with_suffix(""))


if __name__ == "__main__":
    main()
