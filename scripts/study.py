#!/usr/bin/env python
"""Makes everything that results/study shows from its tables again: plots, tables, reports; no GPU, no network.

    python scripts/study.py                 # results/study
    python scripts/study.py --folder DIR    # tables elsewhere

Read are every CSV of points in the folder (`clip-la scaling points` writes them) and every prediction*.json (`clip-la
scaling predict`). Written beside them are a plot (PNG, SVG) and a page (HTML) for each data set and metric, tables.md,
and the part of README.md between its markers: what was trained on one corpus under a heading of its own. A study of
tokens has a folder to itself (tokens/points.csv): its models differ from others in the patches alone, which no law of
compute is about; tokens_table.py makes its table and plot. The tables of attentions are drawn by plot_attention.py and
put together by attention_table.py, whose short tables go into the README of the repository in the same way.
"""

import argparse
import contextlib
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import attention_table
import attention_text
import plot_attention
import plot_curves
import tokens_table
from attention_runs import arms_of, default_tables, read_runs
from study_laws import comparisons_table, held_out_table, predictions
from study_part import World, worlds_of

from clip_la.atomic import atomic_write
from clip_la.cli import Parser, guarded
from clip_la.errors import UserError
from clip_la.scaling.points_table import REQUIRED
from clip_la.scaling.report import to_text
from clip_la.scaling.table import Table
from clip_la.scaling.verdict import verdict

FOLDER = Path(__file__).parents[1] / "results" / "study"
ATTENTION = Path("attention_scenes.csv")
HOW_COMPARED = (
    "Over pairs of runs that differ in the kind alone, with 95 % intervals (Student's t). Each interval is 95 % by "
    "itself: of twenty kinds alike with the baseline one lies outside; the sentences below the plots in README.md "
    "judge the kinds of a plot together. An error ratio is the geometric mean over pairs of runs, of each pair over "
    "its points first. A multiplier is how many times the baseline's samples or compute the kind needs for an equal "
    "error. At equal model it is the mean distance, along log samples or log compute, between the curves of the two "
    "kinds with one model and seed, over the errors that both reach, the curves being straight between their budgets; "
    "then the mean over models, each one voice. No law enters. By one law E = beta C^alpha of all models (errors "
    "clustered by run) it stands in the middle of the pairs: where errors hang on samples more than on the model's "
    "size, that law carries little, and the interval says so."
)
BEGIN, END = "<!-- made by scripts/study.py from here -->", "<!-- to here -->"


def find_tables() -> list[Path]:
    """The tables of points in the working folder, by name. Raises UserError for none, or for a file that is no CSV."""
    found = []
    for path in sorted(Path().glob("*.csv")):
        try:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                names = next(csv.reader(stream), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not a CSV file ({error})") from None
        if set(REQUIRED) <= set(names):
            found.append(path)
    if not found:
        raise UserError(f"{Path.cwd()}: no table of points (CSV with the columns {', '.join(REQUIRED)})")
    return found


def section(title: str, body: str) -> list[str]:
    """A heading with its text and blank lines around; nothing for no text."""
    return [title, "", body, ""] if body else []


def world_lines(world: World, compared: Table, held_out: Table, *, is_whole: bool) -> list[str]:
    """A world's part of a page: all of it (tables.md), or the largest budgets, plots and what they show (README.md)."""
    level = "##" if is_whole else "###"
    lines = [f"{level} {world.title}", "", world.facts, ""]
    for part in world.parts:
        lines += [f"{level}# {part.title}", "", part.means(largest=not is_whole), ""]
        plot = f"![error against compute]({part.stem}.png)"
        if part.problem:
            lines += [f"No laws: {part.problem}.", ""]
        elif is_whole:
            lines += [f"{plot} The same as a [page]({part.stem}.html).", ""]
        else:
            fitted = [fit.name for fit in part.analyses[0].fits]
            few = [f"`{kind}`" for kind in part.kinds if kind not in fitted]
            lacking = f" Too few points for a law, or none on one: {', '.join(few)}." if few else ""
            lines += [plot, "", verdict(part.analyses[0]) + lacking, ""]
        if is_whole:
            lines += section(f"{level}## Paired differences", part.differences())
            lines += section(f"{level}## Learning rates", part.rates())
            for analysis in part.analyses:
                text = f"```text\n{to_text(analysis)}\n```"
                lines += section(f"{level}## Laws, against `{analysis.fits[0].name}`", text)
    lines += section(f"{level}# Compute at equal error", compared.markdown() if compared.rows else "")
    return lines + section(
        f"{level}# The largest scale, predicted from the smaller ones", held_out.markdown() if held_out.rows else ""
    )


def with_part(text: str, part: str, path: Path) -> str:
    """The text with what stands between the markers replaced. Raises UserError where they are not there once."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in tail:
        raise UserError(f"{path}: lacks the markers '{BEGIN}' and '{END}', once each")
    return f"{head}{BEGIN}\n\n{part}\n\n{END}{tail}"


def make(files: bool = True) -> dict[Path, str]:
    """Reads the tables in the working folder, writes plots and pages if `files`; returns the Markdown pages."""
    tables = find_tables()
    worlds = worlds_of(tables)
    parts = [part for world in worlds for part in world.parts]
    if files:
        for part in parts:
            part.write_files(tables)
    said = [(world, comparisons_table(world.parts), held_out_table(world.parts)) for world in worlds]
    for _, _, held_out in said:
        print(held_out.text())
    found = predictions(parts)
    is_compared = any(compared.rows for _, compared, _ in said)

    def page(is_whole: bool) -> list[str]:
        level = "##" if is_whole else "###"
        lines = [line for each in said for line in world_lines(*each, is_whole=is_whole)]
        lines += section(f"{level} Predicted before it was measured", found)
        return lines + section(f"{level} How kinds are compared", HOW_COMPARED if is_compared else "")

    sources = ", ".join(f"[{path}]({path})" for path in tables)
    head = ["# The study's tables", "", f"Made by `python scripts/study.py` from {sources}.", ""]
    texts = {Path("tables.md"): "\n".join([*head, *page(True)]).rstrip() + "\n"}
    readme = Path("README.md")
    if readme.exists():
        lines = page(False)
        if tokens_table.TABLE.exists():
            lines += section("### Tokens against quality and speed", tokens_table.make(tokens_table.TABLE, files=files))
        texts[readme] = with_part(readme.read_text(encoding="utf-8"), "\n".join(lines).rstrip(), readme)
    return texts


def run(argv: Sequence[str] | None) -> int:
    """Makes everything; 0, or a UserError."""
    parser = Parser(prog="study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="holds the tables (default: results/study)")
    options = parser.parse_args(argv)
    if not options.folder.is_dir():
        raise UserError(f"no such folder: {options.folder}")
    # Origins of points are then named as beside the tables, wherever the repository lies.
    with contextlib.chdir(options.folder):
        texts = make()
        if plot_curves.CURVES.exists():
            plot_curves.make(plot_curves.CURVES, Path(plot_curves.CURVES.stem))
        if ATTENTION.exists():
            tables = default_tables(Path())
            plot_attention.make(tables, Path(ATTENTION.stem))
            # The tables of another folder are none of the repository's README and results.
            if Path().resolve() == FOLDER:
                root = Path("../../README.md")
                arms = arms_of(read_runs(tables))
                attention_table.write_tables(arms, attention_table.RESULTS)
                part = attention_text.summary(arms, attention_table.difference_rows(arms))
                texts[root] = with_part(root.read_text(encoding="utf-8"), part, root)
        for path, text in texts.items():
            with atomic_write(path, "w") as stream:
                stream.write(text)
            print(f"wrote {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns the exit code."""
    return guarded("study", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
