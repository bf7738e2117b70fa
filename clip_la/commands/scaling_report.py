"""`clip-la scaling report`: the analysis as one page of HTML, and its plots as files for a paper."""

from pathlib import Path

from clip_la.errors import UserError


def main(argv: list[str]) -> int:
    """Writes the page and, with --figures, the plots; returns 0. Raises UserError."""
    from clip_la.atomic import atomic_write
    from clip_la.commands.scaling import analyse, make_parser
    from clip_la.scaling.analysis import Analysis
    from clip_la.scaling.html.curves import find_curves, find_sheets
    from clip_la.scaling.html.drawn import require_matplotlib, save_figures
    from clip_la.scaling.html.figures import Figures
    from clip_la.scaling.html.page import render

    parser = make_parser("report")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="each plot as PNG, SVG and PDF into this folder")
    # The page's laws are power laws: what `fit` takes for others has no place here.
    parser.set_defaults(law="power", loss=None)
    options = parser.parse_args(argv)
    if options.out.is_dir() or options.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out is {options.out}: the report is a file that ends in .html")
    if options.figures is not None:
        # Before the analysis, which may take a while.
        require_matplotlib()
        if options.figures.exists() and not options.figures.is_dir():
            raise UserError(f"--figures is {options.figures}, a file: give a folder")
    analysis = analyse(options)
    assert isinstance(analysis, Analysis)
    curves = find_curves(options.files, analysis.by)
    page = render(analysis, curves, find_sheets(options.files))
    with atomic_write(options.out, "w") as stream:
        stream.write(page)
    print(f"wrote {options.out} ({len(page.encode()) / 1e6:.2f} MB)")
    if options.figures is not None:
        figures = Figures(analysis, curves)
        written = save_figures(figures.all(), figures.kinds, options.figures)
        print(f"wrote {len(written)} files to {options.figures}")
    return 0
