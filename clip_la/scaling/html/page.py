"""`clip-la scaling report`: one self-contained page of HTML. It loads nothing; its one script is named by its hash."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

from clip_la.errors import UserError, counted, shown
from clip_la.scaling.analysis import Analysis
from clip_la.scaling.html.curves import Curve, Sheet
from clip_la.scaling.html.figures import Figures
from clip_la.scaling.html.headline import headlines
from clip_la.scaling.html.plots import Plot
from clip_la.scaling.html.svg import RADIUS, colour_class, marker_path, svg
from clip_la.scaling.html.tables import comparisons_table, fits_table, left_out_table, points_table
from clip_la.scaling.palette import COLOURS, DARK_COLOURS, DARK_GROUND, LIGHT_GROUND, look_of
from clip_la.scaling.points_table import write_points
from clip_la.scaling.report import compute_label, error_label, how

MAX_BYTES = 5_000_000
# Of the sentences after the first.
SHOWN_ANSWERS = 3


def render(analysis: Analysis, curves: Sequence[Curve] = (), sheets: Sequence[Sheet] = ()) -> str:
    """The page of an analysis, learning curves and contact sheets; equal input gives equal text.

    Whatever comes from files (names of runs, models, data sets, paths) is escaped, and the page's content security
    policy runs no script but its own and loads nothing.

    Raises:
        UserError: so many points that the page would not stay below 5 MB; a name that is no valid Unicode text.
    """
    try:
        page = _page(analysis, curves, sheets)
        size = len(page.encode())
    except UnicodeEncodeError as error:
        # Of a path in another encoding, or an escaped half of a pair in JSON.
        near = str(error.object)[max(0, error.start - 30) : error.end + 30]
        raise UserError(f"a name among the results is no valid Unicode text: ...{shown(near)}...") from None
    if size > MAX_BYTES:
        raise UserError(
            f"the page would have {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}: "
            f"{len(analysis.selection.points)} points are too many; choose some with --where"
        )
    return page


def _page(analysis: Analysis, curves: Sequence[Curve], sheets: Sequence[Sheet]) -> str:
    package = files("clip_la.scaling.html")
    template, style, script = (package.joinpath(f"page.{end}").read_text("utf-8") for end in ("html", "css", "js"))
    figures = Figures(analysis, tuple(curves))
    selection, plots = analysis.selection, figures.all()
    first, *others = headlines(analysis)
    with TemporaryDirectory() as folder:
        write_points([selection], Path(folder) / "points.csv")
        csv = (Path(folder) / "points.csv").read_bytes()
    # The palette shared with the figures on paper: a class for each colour, light and dark.
    pairs = enumerate(zip(COLOURS, DARK_COLOURS, strict=True))
    colours = "".join(f".k{place}{{--own:light-dark({light},{dark})}}" for place, (light, dark) in pairs)
    cautions = "".join(f"<li>{escape(note)}</li>" for note in analysis.notes)
    if cautions:
        heading = "<h2>What these data cannot carry</h2>"
        cautions = f'<section class="cautions">{heading}<ul tabindex="0">{cautions}</ul></section>'
    return Template(template).substitute(
        title=escape(f"Scaling laws on {selection.target}"),
        style=f":root{{--ground:light-dark({LIGHT_GROUND},{DARK_GROUND})}}{colours}\n{style}",
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        headline=escape(first),
        more_headlines=_more(others),
        about=escape(
            f"Error: {error_label(selection)} on {selection.target}. Compute C: {compute_label(selection)} "
            f"({selection.compute_unit}). {counted(len(selection.points), 'point')}; fitted: {analysis.frontier}. "
            f"{how(analysis).strip('[]')}."
        ),
        cautions=cautions,
        legend=_legend(figures.kinds),
        plots="".join(
            f'<figure id="{plot.name}"><h3>{escape(plot.title)}</h3>{svg(plot)}'
            f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
            for plot in plots
            if not plot.missing
        ),
        missing=_missing(plots),
        fits=fits_table(analysis),
        comparisons=comparisons_table(analysis),
        points=points_table(selection.points, analysis.by),
        left_out=left_out_table(analysis),
        sheets=_sheets(sheets),
        csv=base64.b64encode(csv).decode(),
    )


def _more(sentences: Sequence[str]) -> str:
    """The answers after the first: a few as they are, more of them to unfold."""
    text = [f"<p>{escape(each)}</p>" for each in sentences]
    if len(text) <= SHOWN_ANSWERS:
        return "".join(text)
    first, rest = "".join(text[:SHOWN_ANSWERS]), "".join(text[SHOWN_ANSWERS:])
    return f"{first}<details><summary>{len(text) - SHOWN_ANSWERS} more comparisons</summary>{rest}</details>"


def _legend(kinds: Sequence[str]) -> str:
    """A button for each kind, which hides and shows it in every plot."""
    buttons = []
    for kind, name in enumerate(kinds):
        own = look_of(kind)
        dashes = ",".join(f"{each * 1.6:g}" for each in own.dashes)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        buttons.append(
            f'<button type="button" aria-pressed="true" data-toggle="{kind}">'
            f'<svg class="{colour_class(kind)}" width="38" height="14" viewBox="-19 -7 38 14" aria-hidden="true">'
            f'<path class="line" d="M-18 0H18" stroke-width="1.6"{dashed}/>'
            f'<path class="mark" d="{marker_path(own.marker, RADIUS + 0.6)}"/></svg>{escape(name)}</button>'
        )
    return "".join(buttons)


def _missing(plots: Sequence[Plot]) -> str:
    """A line for each reason why plots are not drawn."""
    titles: dict[str, list[str]] = {}
    for plot in plots:
        if plot.missing:
            titles.setdefault(plot.missing, []).append(plot.title)
    return "".join(
        f'<p class="missing">Not drawn: {escape("; ".join(names))}. {escape(why)}</p>' for why, names in titles.items()
    )


def _sheets(sheets: Sequence[Sheet]) -> str:
    if not sheets:
        return ""
    parts = []
    for sheet in sheets:
        name = escape(sheet.name)
        image = f'<img src="{sheet.uri}" width="{sheet.size_px[0]}" height="{sheet.size_px[1]}" alt="{name}">'
        inside = image if sheet.uri else f'<p class="missing">{escape(sheet.why)}</p>'
        parts.append(f'<figure class="sheet">{inside}<figcaption>{name}</figcaption></figure>')
    return f"<section><h2>Contact sheets</h2>{''.join(parts)}</section>"
