"""The tidy table: what is written reads back as the same points; wrong tables are refused in one line."""

import csv
import json
import re
from pathlib import Path

import pytest

from clip_la.cli import main
from clip_la.errors import UserError
from clip_la.scaling.analysis import analyse
from clip_la.scaling.cautions import carrying
from clip_la.scaling.points_table import COLUMNS, REQUIRED, table_points, write_points
from clip_la.scaling.results import all_points, result_points
from clip_la.scaling.rows import has_direction, is_loss

ROW = {
    "run": "r0",
    "model": "vit_s16",
    "attention": "softmax",
    "seed": "0",
    "samples_seen": "1000000",
    "flops_per_sample": "1e9",
    "dataset": "scenes",
    "metric": "top1",
    "value": "0.4",
}


@pytest.fixture
def write_table(tmp_path: Path):
    """Writes rows (changes to ROW) as a table of points and returns its path."""

    def write(rows: list[dict], columns: list[str] | None = None) -> Path:
        path = tmp_path / "points.csv"
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(
                stream, columns or [*ROW, "gpu_seconds", "error_low", "error_high"], extrasaction="ignore"
            )
            writer.writeheader()
            writer.writerows([{**ROW, **row} for row in rows])
        return path

    return write


def test_what_is_written_reads_back_as_the_same_points(write_lines, two_laws, tmp_path) -> None:
    extra = {"parameters": 22_000_000, "image_size": 128, "tokens": 65, "image_attention": "linear", "gpu_seconds": 4.5}
    extra |= {"patch_dropout": 0.5, "context_length": 32}
    lines = [{**line, **extra, "learning_rate": 1e-3, "train_pairs": 500_000} for line in two_laws]
    for line in lines:
        value = line["metrics"]["top1"]["value"]
        line["metrics"]["image_retrieval_recall@1"] = {"value": value / 2}
        line["metrics"]["image_retrieval_median_rank"] = {"value": 7}
        line["metrics"]["contrastive_loss"] = {"value": 5 - value, "low": 4.9 - value, "high": 5.1 - value}
    path = write_lines(lines)
    selections, refused = all_points([path])
    assert refused == []
    assert [each.metric for each in selections] == ["top1", "image_retrieval_recall@1", "contrastive_loss"]
    out = tmp_path / "points.csv"
    assert write_points(selections, out) == 3 * len(lines)
    for metric in ("top1", "contrastive_loss"):
        before = result_points([path], metric=metric)
        after = table_points([out], metric=metric)
        # A line's place is the table's own; all else is the same, to the last digit.
        for old, new in zip(before.points, after.points, strict=True):
            mine, theirs = ({**vars(each), "where": ""} for each in (old, new))
            assert mine.pop("error") == pytest.approx(theirs.pop("error"), rel=1e-15)
            assert mine == theirs
        assert analyse(after).fits[0].law.alpha == pytest.approx(analyse(before).fits[0].law.alpha, rel=1e-12)
    with out.open() as stream:
        first = next(csv.DictReader(stream))
    assert set(first) == set(COLUMNS) >= set(REQUIRED)
    assert float(first["training_flops"]) == 3 * float(first["forward_flops"]) == 3 * 1.5e7 * 30011


def test_a_loss_is_an_error_as_it_stands(write_lines, result_line) -> None:
    lines = [result_line(0.5, run_id=str(i), metrics={"contrastive_loss": {"value": 2.0 + i}}) for i in range(2)]
    assert [p.error for p in result_points([write_lines(lines)], metric="contrastive_loss").points] == [2.0, 3.0]


@pytest.mark.parametrize(
    ("metrics", "metric", "says"),
    [
        ({"text_retrieval_median_rank": {"value": 3.0}}, "text_retrieval_median_rank", "more or less .* is not known"),
        ({"contrastive_loss": {"value": -0.1}}, "contrastive_loss", "is -0.1, not a loss from 0 on"),
        ({"contrastive_loss": {"value": float("nan")}}, "contrastive_loss", "is nan, not a loss from 0 on"),
        ({"top1": {"value": float("nan")}}, "top1", "is nan, not a fraction"),
        ({"top1": {"value": -0.1}}, "top1", "is -0.1, not a fraction"),
    ],
)
def test_another_direction_and_no_numbers_are_refused(write_lines, result_line, metrics, metric, says) -> None:
    path = write_lines([result_line(0.5, metrics=metrics)])
    with pytest.raises(UserError, match=rf"results.jsonl:1: .*{says}"):
        result_points([path], metric=metric)


def test_an_error_of_one_is_left_out_and_said(write_lines, result_line) -> None:
    path = write_lines([result_line(0.0, run_id="a"), result_line(0.3, run_id="b")])
    selection = result_points([path])
    assert [point.source for point in selection.points] == ["b"]
    assert selection.reasons() == [("nothing right: an error of 1 lies on no falling law", 1)]
    with pytest.raises(UserError, match=r"no point .* enters the fit .*nothing right"):
        result_points([write_lines([result_line(0.0)], "other.jsonl")])


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([{}, {"run": "r1", "metric": "top5"}], {}, "2 metrics (top1, top5): choose with --metric"),
        ([{}, {"run": "r1", "dataset": "photos"}], {}, "2 targets (scenes, photos): choose with --target"),
        ([{}], {"metric": "top11"}, "unknown metric 'top11'; did you mean top1"),
        ([{}], {"targets": ["scene"]}, "unknown target 'scene'; did you mean scenes"),
        ([{}], {"targets": ["a", "b"]}, "one --target at a time"),
        ([{}, {}], {}, "points.csv:3: the same run, samples, data set and metric as in"),
        ([{}, {"run": "r1", "value": "nan"}], {}, "points.csv:3: top1 is nan, not a fraction"),
        ([{"value": "1"}], {}, "no point for target 'scenes' enters the fit (1 x nothing wrong: an error of 0"),
        ([{"error_low": "nan"}], {}, "points.csv:2: 'error_low' is 'nan', not a number"),
        ([{"value": "0"}], {}, "no point for target 'scenes' enters the fit (1 x nothing right"),
        ([{"value": "much"}], {}, "points.csv:2: 'value' is 'much', not a number"),
        ([{"value": ""}], {}, "points.csv:2: 'value' is empty"),
        ([{"metric": "median_rank", "value": "3"}], {}, "points.csv:2: whether more or less of 'median_rank'"),
        ([{"samples_seen": "inf"}], {}, "points.csv:2: 'samples_seen' is 'inf', not a positive number"),
        ([{"samples_seen": "0.3"}], {}, "points.csv:2: 'samples_seen' is '0.3', not a whole number"),
        (
            [{"flops_per_sample": "1e308"}],
            {},
            "'flops_per_sample' is '1e308', not between 1e-30 and 1e+30",
        ),
        ([{"metric": "loss", "value": "1e200"}], {}, "points.csv:2: loss is 1e+200, not between 1e-30 and 1e+30"),
        ([{"error_low": ".3", "error_high": ".2"}], {}, "points.csv:2: 'error_low' 0.3 is above 'error_high' 0.2"),
        ([{"metric": "top1_error"}], {}, "points.csv:2: whether more or less of 'top1_error'"),
        ([{"metric": "1-acc"}], {}, "points.csv:2: whether more or less of '1-acc'"),
        ([{"seed": "x"}], {}, "points.csv:2: 'seed' is 'x', not a whole number"),
        ([{"seed": "0.5"}], {}, "points.csv:2: 'seed' is '0.5', not a whole number"),
        ([{"gpu_seconds": "-1"}], {}, "points.csv:2: 'gpu_seconds' is '-1', not a positive number"),
        ([{}], {"axis": "gpu-seconds"}, "enters the fit (1 x no GPU-seconds recorded)"),
        ([{}], {"axis": "second"}, "unknown axis 'second'"),
        ([], {}, "only a header"),
    ],
)
def test_wrong_tables_are_refused_in_one_line(write_table, rows, options, says) -> None:
    with pytest.raises(UserError) as caught:
        table_points([write_table(rows)], **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_columns_and_uneven_rows_are_named(write_table, tmp_path) -> None:
    columns = [name for name in ROW if name not in ("metric", "value")]
    with pytest.raises(UserError, match=r"points.csv: no column metric, value; a table of points has run, model"):
        table_points([write_table([{}], columns)])
    path = write_table([{}])
    path.write_text(path.read_text() + "r2,vit\n")
    with pytest.raises(UserError, match=r"points.csv:3: 2 columns, the header has 12"):
        table_points([path])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a CSV file"):
        table_points([path])
    with pytest.raises(UserError, match="no such file"):
        table_points([tmp_path / "absent.csv"])


def test_files_that_are_no_table_are_told_apart(write_table, tmp_path) -> None:
    text = write_table([{}]).read_text()
    header, row = text.splitlines()
    wrong = {
        "": "is empty; a table of points has run",
        text.replace(",", ";"): "cells are separated by ';', not by commas",
        text.replace(",", "\t"): "cells are separated by '\\t', not by commas",
        text + text: "points.csv:3: the header stands here again; give several tables as several files",
        f"{header},value\n{row},.2\n": "two columns are called value",
    }
    for content, says in wrong.items():
        path = tmp_path / "points.csv"
        path.write_text(content)
        with pytest.raises(UserError, match=re.escape(says)):
            table_points([path])
    with pytest.raises(UserError, match="/dev/null is no plain file"):
        table_points([Path("/dev/null")])


def test_other_line_ends_and_seeds_with_a_point_are_read(write_table, tmp_path) -> None:
    text = write_table([{"seed": "3.0"}]).read_text()
    for content in (text, "\ufeff" + text, text.replace("\n", "\r\n")):
        path = tmp_path / "points.csv"
        path.write_bytes(content.encode())
        assert [point.seed for point in table_points([path]).points] == [3]


@pytest.mark.parametrize(
    ("metric", "loss", "known"),
    [
        *(("contrastive_loss", True, True), ("top1_loss", True, True), ("Loss", True, True)),
        *((name, False, True) for name in ("top1", "acc5", "Accuracy", "mean_average_precision", "text_recall@10")),
        *((name, False, True) for name in ("top1_or_hypernym", "lossless_acc")),
        *((name, False, False) for name in ("top1_error", "1 - top1", "error_rate", "recall_std", "neg_loss", "rank")),
    ],
)
def test_the_direction_of_a_metric_is_read_from_its_words(metric, loss, known) -> None:
    assert (is_loss(metric), has_direction(metric)) == (loss, known)


def test_one_kind_alone_is_fitted_and_said(write_table) -> None:
    rows = [{"run": f"r{i}", "samples_seen": str(10 ** (5 + i)), "value": str(0.3 + 0.1 * i)} for i in range(4)]
    analysis = analyse(table_points([write_table(rows)]))
    assert analysis.notes == ("one attention alone, softmax: nothing to compare it with",)


def test_axes_count_samples_and_seconds(write_table) -> None:
    rows = [{"run": f"r{i}", "samples_seen": str(10 ** (5 + i)), "gpu_seconds": str(5.0 * (i + 1))} for i in range(3)]
    path = write_table(rows)
    assert [p.compute for p in table_points([path], axis="samples").points] == [1e5, 1e6, 1e7]
    seconds = table_points([path], axis="gpu-seconds")
    assert [p.compute for p in seconds.points] == [5.0, 10.0, 15.0]
    assert (seconds.axis, seconds.compute_unit) == ("gpu-seconds", "GPU-seconds")
    assert table_points([path]).along("compute").points[0].compute == 1e14


def test_perfect_and_useless_points_stay_in_the_table_and_leave_the_fit(
    write_lines, two_laws, result_line, tmp_path, capsys
) -> None:
    perfect = result_line(1.0, run_id="perfect", metrics={"top1": {"value": 1.0, "low": 0.99, "high": 1.0}})
    useless = result_line(0.0, run_id="useless")
    path = write_lines([*two_laws, perfect, useless])
    out = tmp_path / "points.csv"
    assert main(["scaling", "points", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}: 26 points of 1 data set and metric\n"
    with out.open() as stream:
        rows = {row["run"]: row for row in csv.DictReader(stream)}
    assert [float(rows["perfect"][name]) for name in ("value", "error", "error_low")] == [1, 0, 0]
    assert [float(rows["useless"][name]) for name in ("value", "error")] == [0, 1]
    expected = analyse(result_points([write_lines(two_laws, "only.jsonl")])).fits
    for source in ([str(path)], [str(out), "--format", "points"]):
        assert main(["scaling", "fit", *source, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert [fit["alpha"] for fit in data["fits"]] == pytest.approx([fit.law.alpha for fit in expected], rel=1e-12)
        assert {(item["what"], item["reason"].split(":")[0]) for item in data["left_out"]} == {
            ("perfect", "nothing wrong"),
            ("useless", "nothing right"),
        }
        assert main(["scaling", "fit", *source]) == 0
        assert "24 points entered, 2 left out\n  1 x nothing wrong: an error of 0" in capsys.readouterr().out
        # A law with a floor says it too.
        assert main(["scaling", "fit", *source, "--law", "saturating", "--resamples", "1"]) == 0
        assert "24 points entered, 2 left out\n  1 x nothing wrong: an error of 0" in capsys.readouterr().out


def test_a_metric_that_is_perfect_throughout_has_rows_and_no_fit(write_lines, result_line, tmp_path, capsys) -> None:
    lines = [result_line(1.0, run_id="a"), result_line(1.0, run_id="b")]
    lines += [result_line(0.0, run_id="c", dataset="other", metrics={"contrastive_loss": {"value": 0.0}})]
    path, out = write_lines(lines), tmp_path / "points.csv"
    assert main(["scaling", "points", str(path), "--out", str(out)]) == 0
    with out.open() as stream:
        assert [(row["run"], row["error"]) for row in csv.DictReader(stream)] == [
            ("a", "0.0"),
            ("b", "0.0"),
            ("c", "0.0"),
        ]
    capsys.readouterr()
    assert main(["scaling", "fit", str(path), "--target", "renditions"]) == 2
    said = capsys.readouterr().err
    assert "no point for target 'renditions' enters the fit (2 x nothing wrong: an error of 0 has no logarithm" in said


def test_cautions(write_table) -> None:
    columns = [*ROW, "train_pairs", "learning_rate"]
    rows = [
        {"run": f"r{i}", "samples_seen": str(10**6 * (i + 1)), "train_pairs": "200000", "learning_rate": "0.001"}
        for i in range(4)
    ]
    notes = carrying("softmax", table_points([write_table(rows, columns)]).points)
    assert [note.split(":")[0] for note in notes] == [
        "the points of softmax span 0.60 decades of compute",
        "4 of 4 points of softmax saw their pairs more than 4 times (up to 20)",
        "one learning rate for each model of softmax",
    ]
    tuned = [{**row, "samples_seen": str(10 ** (4 + i)), "learning_rate": f"0.00{i + 1}"} for i, row in enumerate(rows)]
    assert carrying("softmax", table_points([write_table(tuned[:2], columns)]).points) == []


def test_the_commands_write_tables(write_lines, two_laws, tmp_path, capsys) -> None:
    out = tmp_path / "points.csv"
    assert main(["scaling", "points", str(write_lines(two_laws)), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}: 24 points of 1 data set and metric\n"
    assert main(["scaling", "fit", str(out), "--format", "points"]) == 0
    assert "compute multiplier" in capsys.readouterr().out
    arguments = ["scaling", "coverage", "--out", str(tmp_path / "c.csv"), "--studies", "3", "--resamples", "20"]
    assert main(arguments) == 0
    with (tmp_path / "c.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    # Seven worlds of runs by three methods and quantities, seven of curves by two methods; five numbers of pairs.
    assert len(rows) == 7 * 5 * 3 * 3 + 7 * 5 * 2
    assert {row["studies"] for row in rows} == {"3"}
