"""The public result table of Cherti et al. 2023 as points: zeroshot_results.csv of LAION-AI/scaling-laws-openclip.

One row a (model, target); compute is `gmacs_total`: forward GMACs a pair times samples seen, as in that paper.
"""

from collections.abc import Sequence
from pathlib import Path

from clip_la.errors import UserError, unknown
from clip_la.scaling.points import LeftOut, Point, Selection, collect
from clip_la.scaling.points_table import read_csv
from clip_la.scaling.rows import ResultRow, apply_filters

# What the paper plots for each kind of target: the first of these that the target's rows hold.
DEFAULT_METRICS = ("acc1", "image_retrieval_recall@5", "mean_average_precision")
METRICS = (*DEFAULT_METRICS, "acc5", "mean_per_class_recall", "text_retrieval_recall@5")
COLUMNS = ("arch", "samples_seen", "gmacs_total", "gmacs", "upstream_dataset", "downstream_dataset", "name")
# The one upstream set that is not LAION's: the private one of OpenAI's models.
OPENAI_DATA = "CLIP-WIT"
# A multiply-add counts 2.
FLOPS_PER_GMAC = 2e9


def read_laion(path: Path) -> list[ResultRow]:
    """The table's rows. Raises UserError for an absent, empty or foreign file."""
    return read_csv(path, "laion", COLUMNS, "--format laion reads zeroshot_results.csv of LAION")


def laion_all(paths: Sequence[Path], filters: dict[str, str] | None = None) -> tuple[list[Selection], list[str]]:
    """The points of every target, of each metric that its rows hold, and why others have none.

    Raises:
        UserError: a foreign or damaged file, no target with a point.
    """
    rows = apply_filters([row for path in paths for row in read_laion(path)], filters or {})
    by_target: dict[str, list[ResultRow]] = {}
    for row in rows:
        by_target.setdefault(row.fields["downstream_dataset"], []).append(row)
    kinds = [(t, name) for t, own in by_target.items() for name in METRICS if any(row.fields.get(name) for row in own)]
    return collect(kinds, lambda target, metric: _selection(by_target[target], target, metric))


def laion_points(
    paths: Sequence[Path], *, target: str | None, metric: str | None = None, filters: dict[str, str] | None = None
) -> Selection:
    """The points of one target of the LAION table; every model of it is a run trained to its end, so all enter.

    Raises:
        UserError: foreign or damaged file, unknown target or metric (with the nearest names), no point to fit.
    """
    rows = apply_filters([row for path in paths for row in read_laion(path)], filters or {})
    targets = {row.fields["downstream_dataset"] for row in rows}
    if target is None:
        raise UserError(f"the table has {len(targets)} targets: name one with --target, for example imagenet1k")
    if target not in targets:
        raise unknown("target", target, targets)
    rows = [row for row in rows if row.fields["downstream_dataset"] == target]
    held = [name for name in METRICS if any(row.fields.get(name) for row in rows)]
    if metric is None:
        metric = next((name for name in DEFAULT_METRICS if name in held), None)
        if metric is None:
            raise UserError(f"the target has none of the metrics {', '.join(DEFAULT_METRICS)}: name one with --metric")
    if metric not in held:
        raise unknown("metric", metric, held)
    return _selection(rows, target, metric).along("compute")


def _selection(rows: Sequence[ResultRow], target: str, metric: str) -> Selection:
    """The points of one target's rows, by one of its metrics. Compute is in GMACs, the unit of the paper's fits."""
    points, left_out = [], []
    for row in rows:
        fields, where = row.fields, row.where
        if not fields.get(metric):
            left_out.append(LeftOut(where, fields["name"], f"no {metric}"))
            continue
        flops, compute, samples = (row.number(name) for name in ("gmacs", "gmacs_total", "samples_seen"))
        try:
            value = float(fields[metric])
        except ValueError:
            raise UserError(f"{where}: '{metric}' is {fields[metric]!r}, not a number") from None
        data = fields["upstream_dataset"]
        points.append(
            Point(
                where=where,
                run=f"{fields['arch']} {fields['name']}",
                attention="softmax",
                model=fields["arch"],
                train_data=data,
                source="OpenAI" if data == OPENAI_DATA else "LAION",
                seed=None,
                schedule="cosine",
                batch_size=None,
                flops_per_sample=FLOPS_PER_GMAC * flops,
                samples_seen=round(samples),
                compute=compute,
                error=row.metric_error(metric, value),
            )
        )
    by = ("source", "attention", "model", "train_data")
    return Selection.of(points, left_out, target=target, metric=metric, compute_unit="GMACs", by_choices=by)
