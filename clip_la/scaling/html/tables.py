"""Tables of the page: cells as HTML, sortable by the value that each carries in `data-value`."""

import math
from collections.abc import Sequence
from html import escape

from clip_la.scaling.analysis import Analysis
from clip_la.scaling.joint import best
from clip_la.scaling.points import Point
from clip_la.scaling.report import JOINT_NAMES, MULTIPLIED, number

# A cell is its text, or (text, number to sort by).
Cell = str | tuple[str, float | None]


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A <table> in a frame that scrolls; the script of the page makes its columns sortable. All text is escaped."""

    def html(cell: Cell) -> str:
        if isinstance(cell, str):
            return f"<td>{escape(cell)}</td>"
        text, value = cell
        # repr reads back as the same number: a script that takes figures from the page gets them whole.
        sorted_by = "" if value is None or not math.isfinite(value) else f' data-value="{value!r}"'
        return f'<td class="number"{sorted_by}>{escape(text)}</td>'

    numeric = [bool(rows) and all(not isinstance(row[column], str) for row in rows) for column in range(len(header))]
    head = "".join(
        f'<th scope="col"{" class=number" if right else ""}>{escape(name)}</th>'
        for name, right in zip(header, numeric, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(html, row))}</tr>" for row in rows)
    label = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><caption>{label}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _count(value: int) -> Cell:
    return f"{value:,}", float(value)


def fits_table(analysis: Analysis) -> str:
    """Each kind's law, what it is made of, and how well it predicts the largest scale from the smaller ones."""
    rows: list[list[Cell]] = []
    for fit in analysis.fits:
        held_out = fit.held_out
        at_largest = ("too few points", None) if held_out is None else (held_out.text(), held_out.relative_error)
        rows.append(
            [
                fit.name,
                (number(fit.law.alpha, fit.alpha_interval, ".4f"), fit.law.alpha),
                (number(fit.law.beta, fit.beta_interval, ".4g"), fit.law.beta),
                *(_count(len(fit.points)), _count(len(fit.fitted)), _count(fit.num_runs)),
                (f"{fit.mean_absolute_error:.3g}", fit.mean_absolute_error),
                at_largest,
            ]
        )
    header = ("kind", "α", "β", "points", "fitted", "runs", "mean abs. error", "largest scale: predicted, measured")
    return table("Laws E = β Cᵅ with 95 % intervals", header, rows)


def comparisons_table(analysis: Analysis) -> str:
    """Each kind against the baseline over paired runs; empty where there is no comparison."""
    rows: list[list[Cell]] = []
    for found in analysis.comparisons:
        least = best(found.shared).aicc if found.shared else math.nan
        joint: list[str] = []
        for each in found.shared:
            above = each.aicc - least
            chance = "" if each.p_value is None else f" (p = {each.p_value:.2g})"
            joint.append(f"{JOINT_NAMES[each.shared]} {f'+{above:.1f}' if math.isfinite(above) else '–'}{chance}")
        multipliers: list[Cell] = [
            (f"{number(each.value, each.interval, '.3g')} at error {each.error:.3g}", each.value)
            for each in found.multipliers
        ]
        shared, difference, p_value = found.shared_multiplier, found.alpha_difference, found.difference_p_value
        equal = found.equal_model.compute if found.equal_model else None
        rows.append(
            [
                f"{found.name} / {found.baseline}",
                *(_count(found.num_pairs), _count(found.num_runs)),
                (number(found.error_ratio, found.error_ratio_interval, ".4f"), found.error_ratio),
                ("too few pairs", None)
                if difference is None
                else (number(difference, found.alpha_difference_interval, "+.4f"), difference),
                ("–", None) if p_value is None else (f"{p_value:.3g}", p_value),
                *(multipliers + [("none", None)] * 2)[:2],
                ("none", None) if shared is None else (number(shared.value, shared.interval, ".3g"), shared.value),
                ("none", None) if equal is None else (number(equal.value, equal.interval, ".3g"), equal.value),
                "; ".join(joint) or "–",
            ]
        )
    multiplied = MULTIPLIED[analysis.selection.axis]
    header = (
        *("kind / baseline", "pairs", "pairs of runs", "error ratio", "α difference", "p"),
        *(f"{multiplied} multiplier, middle", f"{multiplied} multiplier, largest", "multiplier at one exponent"),
        *("multiplier at equal model", "AICc over the best joint fit"),
    )
    return table("Paired comparisons with 95 % intervals", header, rows) if rows else ""


def points_table(points: Sequence[Point], by: str) -> str:
    """Every point that entered, with its origin: run, and file and line."""

    def optional(value: float | None, digits: str) -> Cell:
        return ("", None) if value is None else (f"{value:{digits}}", float(value))

    rows: list[list[Cell]] = [
        [
            str(getattr(point, by)),
            point.model,
            optional(point.seed, "d"),
            _count(point.samples_seen),
            (f"{point.compute:.4g}", point.compute),
            (f"{point.error:.4g}", point.error),
            optional(point.gpu_seconds, ".4g"),
            optional(point.tokens, "d"),
            optional(point.learning_rate, ".3g"),
            point.run,
            point.source,
            point.where,
        ]
        for point in points
    ]
    header = (
        by,
        "model",
        "seed",
        "samples seen",
        "C",
        "error",
        "GPU-s",
        "tokens",
        "learning rate",
        "run",
        "source",
        "origin",
    )
    # A column that no point fills, or that stands there already, says nothing.
    full = [
        column
        for column, name in enumerate(header)
        if name not in header[:column] and any(row[column] not in ("", ("", None)) for row in rows)
    ]
    return table("Points", [header[column] for column in full], [[row[column] for column in full] for row in rows])


def left_out_table(analysis: Analysis) -> str:
    """Every record that did not enter, with the reason; empty where all did."""
    rows = [[item.what, item.reason, item.where] for item in analysis.selection.left_out]
    return table("Left out", ("what", "why", "where"), rows) if rows else ""
