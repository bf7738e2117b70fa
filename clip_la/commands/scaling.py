"""`clip-la scaling VERB`: scaling laws from result files, and the runs that make these."""

import argparse
import json
import math
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from clip_la.cli import Parser
from clip_la.errors import EXIT_CODE, UserError, counted, unknown

if TYPE_CHECKING:
    from clip_la.scaling.analysis import Analysis
    from clip_la.scaling.form_analysis import FormAnalysis
    from clip_la.scaling.points import Selection

DEFAULT_BINS = 5
DEFAULT_RESAMPLES = 2000
DESCRIPTIONS = {
    "fit": "Fits scaling laws of error in compute, with intervals, one for each attention, and compares these.",
    "plot": "Draws error against compute with the fits and their bands, as PNG and SVG.",
    "predict": "Writes down what the laws say of a run before it is made; later compares it with what was measured.",
    "report": "Writes one page of HTML: the answer, tables, plots, the origin of each point.",
    "points": "Writes one tidy table (CSV) of all points: every run, data set and metric.",
    "coverage": "Simulates studies with known laws and counts how often the intervals hold the truth.",
    "sweep": "Trains every run of a grid (YAML), one at a time on each GPU; what is finished is skipped.",
}
FORMATS = ("laion", "points", "results")
POWER = "power"
REPORT, SWEEP = "report", "sweep"


def _add_source(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result lines, or folders of runs")
    parser.add_argument(
        "--format", default="results", help="results (ours), points (a tidy table) or laion (zeroshot_results.csv)"
    )
    parser.add_argument(
        "--where", action="append", default=[], metavar="FIELD=VALUE", help="only results with this value; repeatable"
    )


def make_parser(verb: str) -> Parser:
    """The options of `fit`, `plot` or `report`."""
    parser = Parser(prog=f"clip-la scaling {verb}", description=DESCRIPTIONS[verb])
    _add_source(parser)
    parser.add_argument("--metric", help="a loss, or what 1 - metric is fitted (default: top1; laion: its paper's)")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="NAME",
        help="data set; several times: the mean error over them",
    )
    parser.add_argument("--axis", default="compute", help="what error is fitted in: compute, samples or gpu-seconds")
    parser.add_argument(
        "--rate", default="best", help="of several learning rates for a kind, model and samples: best (default), or all"
    )
    parser.add_argument("--frontier", default="all", help="points that enter: all, pareto, or bins (best of each)")
    parser.add_argument("--bins", type=int, metavar="N", help=f"with --frontier bins (default {DEFAULT_BINS})")
    parser.add_argument(
        "--by", metavar="FIELD", help="a fit for each: attention, model, train_data, ...; laion: source too"
    )
    parser.add_argument(
        "--baseline", metavar="KIND", help="the kind that all others are compared with (default: softmax)"
    )
    parser.add_argument("--interval", help="t (default), percentile (default with another --frontier) or bca")
    parser.add_argument("--resamples", type=int, metavar="N", help=f"of the bootstrap (default {DEFAULT_RESAMPLES})")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    if verb in ("fit", "predict"):
        parser.add_argument("--law", default=POWER, help="power (default), saturating, or parametric: L(N, D)")
        parser.add_argument("--loss", help="squares (default of saturating), relative or huber (of parametric)")
    if verb == "fit":
        parser.add_argument("--json", action="store_true", help="print everything as JSON")
    elif verb == "plot":
        parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="PATH.png and PATH.svg are written")
    return parser


def _select(options: argparse.Namespace) -> "Selection":
    """The points that the options ask for."""
    from clip_la.scaling.laion import laion_points
    from clip_la.scaling.points_table import table_points
    from clip_la.scaling.results import result_points
    from clip_la.scaling.rows import parse_filters

    if options.format not in FORMATS:
        raise unknown("format", options.format, FORMATS)
    filters = parse_filters(options.where)
    if options.format != "laion":
        read = result_points if options.format == "results" else table_points
        return read(options.files, targets=options.target, metric=options.metric, filters=filters, axis=options.axis)
    if len(options.target) > 1:
        raise UserError("--format laion fits one --target at a time")
    if options.axis != "compute":
        raise UserError("--format laion knows no --axis but compute")
    target = options.target[0] if options.target else None
    return laion_points(options.files, target=target, metric=options.metric, filters=filters)


def analyse(options: argparse.Namespace, selection: "Selection | None" = None) -> "Analysis | FormAnalysis":
    """The analysis that the options of `fit` ask for, of a selection or of their files. Raises UserError."""
    from clip_la.scaling.analysis import analyse as analyse_power
    from clip_la.scaling.form_analysis import FORM_RESAMPLES, analyse_form
    from clip_la.scaling.rates import at_rate

    is_power = options.law == POWER
    if is_power and options.loss is not None:
        raise UserError("--loss belongs to --law saturating and parametric")
    if not is_power and options.interval is not None:
        raise UserError(f"--interval belongs to --law {POWER}; those of others are percentiles")
    if not is_power and options.baseline is not None:
        raise UserError(f"--baseline belongs to --law {POWER}; the others compare all kinds at once")
    if options.bins is not None and options.frontier != "bins":
        raise UserError("--bins belongs to --frontier bins")
    if (options.resamples is not None and options.resamples < 1) or options.seed < 0:
        raise UserError("--resamples takes a number from 1, --seed one from 0")
    selection = at_rate(selection or _select(options), options.rate)
    shared: dict[str, Any] = {
        "by": options.by,
        "frontier": options.frontier,
        "num_bins": DEFAULT_BINS if options.bins is None else options.bins,
        "seed": options.seed,
    }
    if is_power:
        num_resamples = options.resamples or DEFAULT_RESAMPLES
        given = {"baseline": options.baseline, "method": options.interval, "num_resamples": num_resamples}
        return analyse_power(selection, **given, **shared)
    num_resamples = options.resamples or FORM_RESAMPLES
    return analyse_form(selection, options.law, loss=options.loss, num_resamples=num_resamples, **shared)


def _fit(argv: list[str]) -> None:
    from clip_la.scaling.form_analysis import FormAnalysis, form_data, form_text
    from clip_la.scaling.report import to_data, to_text

    options = make_parser("fit").parse_args(argv)
    found = analyse(options)
    if isinstance(found, FormAnalysis):
        print(json.dumps(form_data(found), indent=2, allow_nan=False) if options.json else form_text(found))
    else:
        print(json.dumps(to_data(found), indent=2, allow_nan=False) if options.json else to_text(found))


def _plot(argv: list[str]) -> None:
    from clip_la.scaling.plot import output_paths, save_plot
    from clip_la.scaling.report import to_text

    options = make_parser("plot").parse_args(argv)
    output_paths(options.out)
    options.law, options.loss = POWER, None
    analysis = cast("Analysis", analyse(options))
    print(to_text(analysis))
    png, svg = save_plot(analysis, options.out)
    print(f"wrote {png} and {svg}")


def _points(argv: list[str]) -> None:
    from clip_la.scaling.laion import laion_all
    from clip_la.scaling.points import OFF_LAW
    from clip_la.scaling.points_table import write_points
    from clip_la.scaling.results import all_points
    from clip_la.scaling.rows import parse_filters

    parser = Parser(prog="clip-la scaling points", description=DESCRIPTIONS["points"])
    _add_source(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="the table")
    options = parser.parse_args(argv)
    if options.format not in ("laion", "results"):
        raise unknown("format", options.format, ("laion", "results"))
    filters = parse_filters(options.where)
    selections, refused = (laion_all if options.format == "laion" else all_points)(options.files, filters)
    count = write_points(selections, options.out)
    for reason in refused:
        print(f"left out: {reason}")
    # Points that no law takes are rows of the table all the same.
    left_out = {(i.where, i.reason) for each in selections for i in each.left_out if i.reason not in OFF_LAW}
    lines = f", {counted(len(left_out), 'line')} left out (clip-la scaling fit says why)" if left_out else ""
    kinds = counted(len(selections), "data set and metric", "data sets and metrics")
    print(f"wrote {options.out}: {counted(count, 'point')} of {kinds}{lines}")


def _predict(argv: list[str]) -> None:
    from clip_la.atomic import atomic_write
    from clip_la.scaling.analysis import Analysis
    from clip_la.scaling.predict import predict
    from clip_la.scaling.prediction_record import outcome_text, outcomes, read_record, record
    from clip_la.scaling.rates import at_rate
    from clip_la.scaling.results import find_files

    parser = make_parser("predict")
    parser.add_argument("--model", help="the run's preset; its compute is counted for each attention")
    parser.add_argument("--samples", type=int, nargs="+", default=[], metavar="N", help="with --model: samples it sees")
    parser.add_argument("--context-length", type=int, metavar="N", help="tokens of a caption, if not the preset's")
    parser.add_argument("--compute", type=float, metavar="C", help="or its compute, in the points' unit")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the record; it is never written over")
    parser.add_argument("--check", type=Path, metavar="FILE.json", help="a record to be compared with FILE ...")
    options = parser.parse_args(argv)
    if options.check is not None:
        mine = ("check", "files", "format", "where")
        others = {name: value for name, value in vars(options).items() if name not in mine}
        given = [name for name, value in others.items() if value != parser.get_default(name)]
        if given:
            alone = "--check takes metric, target and runs from its file: give it alone"
            raise UserError(f"{alone}, without --{given[0].replace('_', '-')}")
        made = read_record(options.check)
        options.metric, options.target, options.axis = made["metric"], [made["target"]], made["axis"]
        # Runs that the laws were not of are no outcome of theirs either.
        options.where = list(dict.fromkeys([*made.get("where", ()), *options.where]))
        try:
            selection = at_rate(_select(options), made["rate"])
            found = outcomes(made["predictions"], selection, made["by"])
        except UserError as error:
            # What is wrong with a table names it; all else was looked for because the record says so.
            if any(str(path) in str(error) for path in options.files):
                raise
            raise UserError(f"{options.check}: {error}") from None
        print(outcome_text(made, found))
        return
    if (options.model is None) == (options.compute is None) or (options.model is None) == bool(options.samples):
        raise UserError("of which run: --model NAME --samples N ..., or --compute C")
    if not all(0 < each < math.inf for each in (*options.samples, 1 if options.compute is None else options.compute)):
        raise UserError("--samples and --compute take numbers above 0")
    if options.out is None:
        raise UserError("--out FILE.json is needed (or --check FILE.json)")
    if options.out.exists():
        raise UserError(f"{options.out} exists: a prediction that was written down stands; choose another --out")
    analysis = analyse(options)
    run = {name: getattr(options, name) for name in ("model", "samples", "compute", "context_length")}
    predictions = predict(analysis, **run)
    made = record(analysis, predictions, find_files(options.files), rate=options.rate, where=options.where)
    with atomic_write(options.out, "w") as stream:
        json.dump(made, stream, indent=2, allow_nan=False)
        stream.write("\n")
    print(outcome_text(made, outcomes(predictions, analysis.selection, analysis.by)))
    # What the kinds' comparison lacks is nothing to one kind's prediction.
    of_pairs = analysis.pair_notes if isinstance(analysis, Analysis) else ()
    for note in (note for note in analysis.notes if note not in of_pairs):
        print(f"note: {note}")
    print(f"wrote {options.out}")


def _coverage(argv: list[str]) -> None:
    from clip_la.scaling.coverage import study, write_table
    from clip_la.scaling.curve_coverage import curve_study

    parser = Parser(prog="clip-la scaling coverage", description=DESCRIPTIONS["coverage"])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="the table")
    parser.add_argument("--studies", type=int, default=500, metavar="N", help="of each kind (default %(default)s)")
    parser.add_argument(
        "--resamples", type=int, default=DEFAULT_RESAMPLES, metavar="N", help="of the bootstrap (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of studies and bootstrap (default %(default)s)")
    options = parser.parse_args(argv)
    if options.studies < 1 or options.resamples < 1 or options.seed < 0:
        raise UserError("--studies and --resamples take a number from 1, --seed one from 0")
    rows = chain(
        study(num_studies=options.studies, num_resamples=options.resamples, seed=options.seed),
        curve_study(num_studies=options.studies, seed=options.seed),
    )
    print(f"wrote {options.out}: {write_table(rows, options.out)} rows")


VERBS = {"fit": _fit, "plot": _plot, "points": _points, "predict": _predict, "coverage": _coverage}


def main(argv: list[str]) -> int | None:
    """Runs `clip-la scaling VERB ...`. Raises UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  clip-la scaling {verb:<10}{text}" for verb, text in DESCRIPTIONS.items())
        print(
            f"usage: clip-la scaling {{{','.join(DESCRIPTIONS)}}} FILE ... [options]\n\n{lines}",
            file=None if argv else sys.stderr,
        )
        return 0 if argv else EXIT_CODE
    verb, *rest = argv
    if verb not in DESCRIPTIONS:
        raise unknown("scaling command", verb, DESCRIPTIONS)
    if verb == REPORT:
        from clip_la.commands.scaling_report import main as report

        return report(rest)
    if verb == SWEEP:
        from clip_la.commands.scaling_sweep import main as sweep

        return sweep(rest)
    VERBS[verb](rest)
    return 0
