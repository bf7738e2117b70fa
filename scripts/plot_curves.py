#!/usr/bin/env python
"""Draws results/study/curves.png and .svg: training loss against samples seen, a panel a model, every run a line.

    python scripts/plot_curves.py [CSV]    # columns model, attention, seed, learning_rate, samples_seen, loss

The table has the rows of metrics.csv of the runs of study_scenes_small.yaml with the largest budget: a trunk at a
constant rate, then its branch that cools down. Lines of one colour are seeds; dashed ones have another rate than the
size's first.
"""

import argparse
import csv
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_runs import RESULTS
from plot_attention import save

from clip_la.cli import Parser, guarded
from clip_la.errors import UserError
from clip_la.scaling.palette import COLOURS
from clip_la.scaling.plot import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = Path("curves.csv")
COLUMNS = ("model", "attention", "seed", "learning_rate", "samples_seen", "loss")
PANEL_INCHES = (3.4, 3.3)
TICKS = ([30_000, 100_000, 300_000], ["30,000", "100,000", "300,000"])
Curves = Mapping[tuple[str, str, str, float], Sequence[tuple[int, float]]]


def read_curves(path: Path) -> Curves:
    """(model, attention, seed, rate) -> (samples seen, loss) in order; raises UserError for a table of another kind."""
    curves: defaultdict[tuple[str, str, str, float], list[tuple[int, float]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                model, attention, seed, rate, samples, loss = (row[name] for name in COLUMNS)
                if int(samples) <= 0 or not 0 < float(loss) < math.inf:
                    raise ValueError(f"samples_seen {samples} and loss {loss} have no place on logarithmic axes")
                curves[model, attention, seed, float(rate)].append((int(samples), float(loss)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a table of the columns {', '.join(COLUMNS)} ({error})") from None
    if not curves:
        raise UserError(f"{path} has no rows")
    return curves


def draw(curves: Curves) -> "Figure":
    """The figure, models from the widest on; both axes are logarithmic."""
    from matplotlib.figure import Figure

    models, attentions = (list(dict.fromkeys(key[i] for key in curves)) for i in (0, 1))
    figure = Figure(figsize=(PANEL_INCHES[0] * len(models), PANEL_INCHES[1]), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        rates = [rate for name, _, _, rate in curves if name == model]
        usual = max(set(rates), key=rates.count)
        for (name, attention, _, rate), points in curves.items():
            if name == model:
                colour = COLOURS[attentions.index(attention) % len(COLOURS)]
                panel.plot(*zip(*points, strict=True), color=colour, linewidth=1.0, ls="-" if rate == usual else ":")
        panel.set(title=f"{model}, rate {usual:g}", xscale="log", yscale="log", xlabel="samples seen")
        panel.set_xticks(*TICKS, minor=False)
        panel.set_xticks([], minor=True)
        panel.grid(color="#E4E4E4", linewidth=0.6)
    panels[0].set_ylabel("training loss, batch 1,024")
    for i, attention in enumerate(attentions):
        panels[0].plot([], [], color=COLOURS[i % len(COLOURS)], label=attention)
    panels[0].legend(fontsize=6, loc="lower left")
    return figure


def make(table: Path, out: Path) -> None:
    """Draws a table. Raises UserError for one that cannot be drawn."""
    curves = read_curves(table)
    import matplotlib

    settings: dict[str, Any] = {**matplotlib.rcParamsDefault, **STYLE, "font.size": 8}
    with matplotlib.rc_context(settings):
        save(draw(curves), out)


def run(argv: Sequence[str] | None) -> int:
    """Draws the study's curves or those of another table, beside it; 0, or a UserError."""
    parser = Parser(prog="plot_curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="?", default=RESULTS / "study" / CURVES, metavar="CSV", help="curves")
    table = parser.parse_args(argv).table
    make(table, table.with_suffix(""))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns the exit code."""
    return guarded("plot_curves", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
