#!/usr/bin/env python
"""Makes the table and the plot of tokens against quality and speed: one model at several patch sizes.

    python scripts/tokens_table.py [CSV] [--speed CSV]    # results/study/tokens/points.csv, results/attention_speed.csv

Read are points (`clip-la scaling points` of the runs of study_tokens.yaml) and speeds of whole image towers (`clip-la
bench attention`), where there are some. The table is printed as Markdown; tokens.png and .svg lie beside the points.
study.py puts both into results/study/README.md.
"""

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any

from attention_runs import RESULTS
from plot_attention import save

from clip_la.cli import Parser, guarded
from clip_la.errors import UserError
from clip_la.scaling.analysis import group_points
from clip_la.scaling.by_place import mean_text, measured, shown
from clip_la.scaling.palette import COLOURS, DASHES, look_of
from clip_la.scaling.plot import STYLE
from clip_la.scaling.points import Point
from clip_la.scaling.points_table import table_points
from clip_la.scaling.rates import BEST, at_rate
from clip_la.scaling.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From results/study.
TABLE = Path("tokens/points.csv")
SPEED = RESULTS / "attention_speed.csv"
SPEED_COLUMNS = ("device", "model", "attention", "what", "tokens", "training_ratio")
SOFTMAX = "softmax"
RECALL, LOSS = "image_retrieval_recall@1", "contrastive_loss"
NONE = "–"
PANEL_INCHES = (3.6, 3.2)
# (kind, image tokens).
Place = tuple[str, int]


@dataclass(frozen=True)
class Lengths:
    """What was measured at each kind and number of image tokens.

    Attributes:
        by_metric: RECALL, LOSS -> place -> points, a run each, at the best rate of several.
        towers: a column's name -> place -> the training speed of the image tower over that of softmax's, > 1 faster.
    """

    by_metric: dict[str, dict[Place, list[Point]]]
    towers: dict[str, dict[Place, float]]

    @classmethod
    def read(cls, points: Path, speed: Path) -> "Lengths":
        """Reads both tables; a table of speeds that is absent has none.

        Raises UserError for a table of another kind, points without their tokens, or of several models or budgets.
        """
        by_metric: dict[str, dict[Place, list[Point]]] = {}
        for metric in (RECALL, LOSS):
            selection = at_rate(table_points([points], metric=metric, axis=None), BEST)
            # softmax first, as in every plot.
            kinds = group_points(measured(selection), "attention")
            by_metric[metric] = defaultdict(list)
            for kind, own in kinds.items():
                for point in sorted(own, key=lambda point: point.tokens or 0):
                    if not point.tokens:
                        raise UserError(f"{point.where}: no 'tokens' recorded: nothing to compare lengths by")
                    by_metric[metric][kind, point.tokens].append(point)
            settings = sorted({(point.model, point.samples_seen) for own in kinds.values() for point in own})
            if len(settings) > 1:
                raise UserError(f"{points}: one model and budget can be compared over tokens, not {settings}")
        towers: dict[str, dict[Place, float]] = defaultdict(dict)
        try:
            if speed.exists():
                with speed.open(newline="", encoding="utf-8") as stream:
                    for row in csv.DictReader(stream):
                        device, model, kind, what, tokens, ratio = (row[name] for name in SPEED_COLUMNS)
                        if what == "tower":
                            towers[f"{model}, {device.removeprefix('NVIDIA ')}"][kind, int(tokens)] = float(ratio)
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{speed}: no table of speeds ({', '.join(SPEED_COLUMNS)}): {error}") from None
        places = by_metric[LOSS]
        measured_towers = {
            name: {place: ratio for place, ratio in own.items() if place in places} for name, own in towers.items()
        }
        return cls(by_metric, {name: own for name, own in measured_towers.items() if own})

    @property
    def places(self) -> list[Place]:
        """Kind by kind, softmax first, the fewest tokens first."""
        return list(self.by_metric[LOSS])

    def seconds(self, place: Place) -> dict[int | None, float]:
        """GPU-seconds of its runs by seed, as far as recorded."""
        return {point.seed: point.gpu_seconds for point in self.by_metric[LOSS].get(place, ()) if point.gpu_seconds}

    def speed(self, place: Place) -> float | None:
        """Its training speed over that of softmax at as many tokens, over seeds that both have; None without one."""
        own, softmax = self.seconds(place), self.seconds((SOFTMAX, place[1]))
        # Equal samples: the ratio of speeds is the inverse one of seconds.
        ratios = [softmax[seed] / own[seed] for seed in own if seed in softmax]
        return geometric_mean(ratios) if ratios else None

    def table(self) -> Table:
        """A row for each kind and length: quality, compute, seconds, speed over softmax."""
        rows = []
        for place in self.places:
            kind, tokens = place
            quality = [
                mean_text([shown(metric, point.error) for point in self.by_metric[metric].get(place, ())], metric)
                for metric in (RECALL, LOSS)
            ]
            seconds, speed = self.seconds(place), self.speed(place)
            gflops = fmean(point.flops_per_sample for point in self.by_metric[LOSS][place]) / 1e9
            cells = [f"`{kind}`", f"{tokens:,}", *quality, f"{gflops:.2f}"]
            cells += [f"{fmean(seconds.values()):,.0f}" if seconds else NONE, f"{speed:.2f}" if speed else NONE]
            for own in self.towers.values():
                cells.append(f"{own[place]:.2f}" if place in own else NONE)
            rows.append(tuple(cells))
        header = (
            *("kind", "image tokens", "image recall@1 %", f"{LOSS}, nats", "forward GFLOPs a pair"),
            *("GPU-seconds a run", "training speed / softmax"),
            *(f"tower alone / softmax ({name})" for name in self.towers),
        )
        return Table(header, tuple(rows))

    def draw(self) -> "Figure":
        """Two panels over tokens: the error with a point a run, and the training speed over that of softmax."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2 * PANEL_INCHES[0], PANEL_INCHES[1]), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, kind in enumerate(dict.fromkeys(kind for kind, _ in self.places)):
            own, look = [place for place in self.places if place[0] == kind], look_of(number)
            line: dict[str, Any] = {"ls": (0, look.dashes) if look.dashes else "-", "lw": 1.2}
            # (axes, (tokens, value) in order, how it is drawn): means, the runs about them, speeds, those of towers.
            runs = [(place[1], point.error) for place in own for point in self.by_metric[RECALL].get(place, ())]
            means = [(tokens, fmean(error for at, error in runs if at == tokens)) for tokens, _ in dict(runs).items()]
            speeds = [(place[1], speed) for place in own if (speed := self.speed(place)) is not None]
            dotted = {"marker": look.marker, "ls": (0, DASHES[5]), "lw": 0.8, "mfc": "none"}
            drawn: list[tuple[Axes, list[tuple[int, float]], dict[str, Any]]] = [
                (left, means, {"label": kind, **line}),
                (left, runs, {"marker": look.marker, "ls": ""}),
                (right, speeds, {"marker": look.marker, **line}),
                # softmax over softmax is 1 there too.
                *(
                    (right, [(place[1], ratios[place]) for place in own if place in ratios], dotted)
                    for ratios in self.towers.values()
                    if kind != SOFTMAX
                ),
            ]
            for axes, points, how in drawn:
                if points:
                    axes.plot(*zip(*points, strict=True), color=COLOURS[look.colour], markersize=4, **how)
        lengths = sorted({tokens for _, tokens in self.places})
        for axes in (left, right):
            axes.set(xscale="log", yscale="log", xlabel="image tokens")
            axes.set_xticks(lengths, [f"{each:,}" for each in lengths])
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}")
            axes.tick_params(axis="y", which="both", labelsize=6)
            axes.grid(color="#E4E4E4", linewidth=0.6)
        left.set_title("1 − image recall@1; a point a run, lines through means")
        right.set_title("training speed / softmax" + ("; hollow: image tower alone" if self.towers else ""))
        left.legend(fontsize=6)
        return figure


def make(points: Path, speed: Path = SPEED, *, files: bool = True) -> str:
    """The table with its plot as Markdown for a page in the working folder; draws the plot if `files`.

    Raises UserError as `Lengths.read`.
    """
    lengths = Lengths.read(points, speed)
    stem = points.with_name("tokens")
    if files:
        import matplotlib

        settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE, "font.size": 8, "axes.titlesize": 8}
        with matplotlib.rc_context(settings):
            save(lengths.draw(), stem)
    first = lengths.by_metric[LOSS][lengths.places[0]][0]
    head = (
        f"{first.model}, {first.samples_seen:,} samples in batches of {first.batch_size or 0:,}, from "
        f"[{points.name}]({points}). Mean over seeds; ± the standard deviation over (so many) runs. Speed is softmax's "
        "GPU-seconds over the kind's at as many tokens, over seeds that both have; above 1 the kind is faster."
    )
    if lengths.towers:
        head += " The image tower alone, forward and backward, is from `results/attention_speed.csv`."
    return f"{head}\n\n{lengths.table().markdown()}\n\n![error and speed against tokens]({stem}.png)"


def run(argv: Sequence[str] | None) -> int:
    """Draws the plot and prints the table; 0, or a UserError."""
    parser = Parser(prog="tokens_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", type=Path, nargs="?", default=RESULTS / "study" / TABLE, metavar="CSV", help="points")
    parser.add_argument("--speed", type=Path, default=SPEED, help="speeds of towers (default: %(default)s)")
    options = parser.parse_args(argv)
    print(make(options.points, options.speed))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns the exit code."""
    return guarded("tokens_table", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
