#!/usr/bin/env python
"""From the tables of sweeps over attentions to one: each arm at each rate, its best rate, and paired differences.

    python scripts/attention_table.py            # writes attention.csv, attention_differences.csv, attention.md; prints
    python scripts/attention_table.py --short    # prints the best arms of each group; writes nothing
    python scripts/attention_table.py runs/scenes_attention/sweep.csv runs/tiny_attention/sweep.csv

A run of a later table replaces the same one (task, model, attention, rate, seed) of an earlier table. Unfinished runs
are left out and counted; diverged ones enter no mean and are counted in the table. A run diverged if its table's column
`outcome` says so, or if its last loss is not finite or above --max-loss.
"""

import argparse
import csv
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from attention_runs import (
    CONTROLS,
    RESULTS,
    SOFTMAX,
    TASKS,
    Arm,
    arms_of,
    control_of,
    default_tables,
    read_runs,
)
from attention_text import FEATURED, shown

from clip_la.atomic import atomic_write
from clip_la.cli import Parser, guarded
from clip_la.errors import unknown

LEVEL = 0.95
# Seeds from which on their differences have an interval of their own.
MIN_PAIRED = 3


@dataclass(frozen=True)
class Spread:
    """The standard deviation between seeds of one arm at one rate, pooled over arms; its degrees of freedom."""

    deviation: float
    freedom: int

    @classmethod
    def of(cls, samples: Iterable[Sequence[float]]) -> "Spread":
        """From the values of the seeds of each arm and rate; those of a single seed say nothing."""
        squares = [(len(values) - 1, variance(values)) for values in samples if len(values) > 1]
        freedom = sum(count for count, _ in squares)
        pooled = sum(count * square for count, square in squares) / freedom if freedom else math.nan
        return cls(math.sqrt(pooled), freedom)

    def half(self, num_terms: float) -> float:
        """Half of Student's 95 % interval of what varies `num_terms` times as much as one run does; NaN if unknown."""
        from scipy.stats import t

        return float(t.ppf((1 + LEVEL) / 2, self.freedom)) * self.deviation * math.sqrt(num_terms)


def spreads_of(arms: Sequence[Arm]) -> dict[tuple[Any, ...], Spread]:
    """A Spread for each task, model, number of tokens and metric."""
    samples: dict[tuple[Any, ...], list[list[float]]] = defaultdict(list)
    for arm in arms:
        for metric in TASKS[arm.task]:
            samples[(*arm.setting.values(), metric.column)] += [
                [*arm.values(lr, metric.column).values()] for lr in arm.by_rate
            ]
    return {key: Spread.of(found) for key, found in samples.items()}


def intervals(mean: float, over_seeds: float, shares: Iterable[float], num_samples: int) -> dict[str, Any]:
    """The 95 % intervals of a share, or of a difference of two: over seeds, half of it given, and over test images.

    The latter takes the shares for independent. Of two models on the same images it is too wide, for they mostly fail
    at the same ones; a table of runs does not have the result of each image.
    """
    from scipy.stats import norm

    over_images = float(norm.ppf((1 + LEVEL) / 2)) * math.sqrt(sum(p * (1 - p) for p in shares) / num_samples)
    row: dict[str, Any] = {}
    for name, half in (("seeds", over_seeds), ("images", over_images)):
        bounds = (mean - half, mean + half)
        row |= dict(zip((f"low_over_{name}", f"high_over_{name}"), bounds, strict=True)) if math.isfinite(half) else {}
    return {name: round(value, 6) for name, value in row.items()}


def arm_rows(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A row for each arm, rate and metric; intervals over seeds are from the pooled spread."""
    spreads = spreads_of(arms)
    rows = []
    for arm in arms:
        for lr, runs in arm.by_rate.items():
            for metric in TASKS[arm.task]:
                values = arm.values(lr, metric.column)
                row = {
                    **arm.setting,
                    "metric": metric.column,
                    "image_attention": arm.image,
                    "text_attention": arm.text,
                    "lr": lr,
                    "is_best_rate": lr == arm.best_lr,
                    "num_seeds": len(values),
                    "num_diverged": sum(not run.is_ok for run in runs),
                    "seeds": " ".join(map(str, values)),
                    "values": " ".join(f"{value:.6g}" for value in values.values()),
                }
                if values:
                    mean = fmean(values.values())
                    half = spreads[*arm.setting.values(), metric.column].half(1 / len(values))
                    size = runs[0].num_samples[metric.column]
                    row |= {"mean": round(mean, 6), **intervals(mean, half, [mean], size)}
                rows.append(row | {"parameters": runs[0].parameters, "forward_gflops": runs[0].gflops})
    return rows


def rates_of(arm: Arm, against: Arm) -> Iterator[tuple[float, float, str]]:
    """What to compare two arms at: every rate that both have, and the best of each, with a word for which it is."""
    a, b = arm.best_lr, against.best_lr
    for lr in arm.by_rate:
        if lr in against.by_rate:
            yield lr, lr, "equal, best of each" if lr == a == b else "equal"
    if a is not None and b is not None and a != b:
        yield a, b, "best of each"


def difference_rows(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Each arm with a linear layer against plain softmax and against its control, over the seeds that both have.

    Three seeds and more give Student's interval of their paired differences, fewer one from the pooled spread of single
    arms: differences of one or two seeds do not say how far a third may lie.
    """
    spreads = spreads_of(arms)
    known = {(*arm.setting.values(), arm.image, arm.text): arm for arm in arms}
    linear = [arm for arm in arms if arm.group != CONTROLS]
    rows = []
    for arm in linear:
        # Where nothing stands around an arm its control is plain softmax.
        plans = dict.fromkeys([(SOFTMAX, SOFTMAX), (control_of(arm.image), control_of(arm.text))])
        for against in [known[key] for each in plans if (key := (*arm.setting.values(), *each)) in known]:
            for (lr, against_lr, at), metric in itertools.product(rates_of(arm, against), TASKS[arm.task]):
                a, b = arm.values(lr, metric.column), against.values(against_lr, metric.column)
                seeds = sorted(a.keys() & b.keys())
                if not seeds:
                    continue
                differences = [a[seed] - b[seed] for seed in seeds]
                is_paired = len(seeds) >= MIN_PAIRED
                spread = Spread.of([differences]) if is_paired else spreads[*arm.setting.values(), metric.column]
                half = spread.half((1 if is_paired else 2) / len(seeds))
                shares = [fmean(each[seed] for seed in seeds) for each in (a, b)]
                size = arm.first_run.num_samples[metric.column]
                row = {
                    **arm.setting,
                    "metric": metric.column,
                    "attention": arm.label,
                    "against": against.label,
                    "rates": at,
                    "lr": lr,
                    "against_lr": against_lr,
                    "num_seeds": len(seeds),
                    "seeds": " ".join(map(str, seeds)),
                    "differences": " ".join(f"{difference:.6g}" for difference in differences),
                    "mean": round(fmean(differences), 6),
                    "spread": "paired" if is_paired else "pooled",
                }
                rows.append(row | intervals(fmean(differences), half, shares, size))
    return rows


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV, with every column that any of them has."""
    with atomic_write(path, "w") as stream:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}", file=sys.stderr)


def write_tables(arms: Sequence[Arm], folder: Path) -> None:
    """attention.csv, attention_differences.csv, and both to read: attention.md."""
    write(folder / "attention.csv", arm_rows(arms))
    write(folder / "attention_differences.csv", difference_rows(arms))
    path = folder / "attention.md"
    with atomic_write(path, "w") as stream:
        stream.write(f"# Attentions compared\n\n{shown(arms, difference_rows(arms), is_short=False)}\n")
    print(f"wrote {path}", file=sys.stderr)


def run(argv: Sequence[str] | None) -> int:
    """Reads the sweeps' tables, writes the two tables and prints them, or prints the short ones. 0, or a UserError."""
    parser = Parser(prog="attention_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="*", metavar="CSV", help="default: those of results/study")
    parser.add_argument("--short", action="store_true", help="print the best arms of each group, write nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the two tables (default: results)")
    parser.add_argument("--max-loss", type=float, default=math.inf, help="a run whose last loss is higher diverged")
    parser.add_argument(
        "--pairs", nargs="*", default=FEATURED, metavar="ATTENTION", help="print differences of these (default: rala's)"
    )
    options = parser.parse_args(argv)
    arms = arms_of(read_runs(options.tables or default_tables(), options.max_loss))
    labels = {arm.label for arm in arms if arm.group != CONTROLS}
    if options.pairs is not FEATURED and (absent := [name for name in options.pairs if name not in labels]):
        raise unknown("attention with a linear layer", absent[0], labels)
    if not options.short:
        write_tables(arms, options.out)
    print(shown(arms, difference_rows(arms), options.pairs, is_short=options.short))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns the exit code."""
    return guarded("attention_table", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
