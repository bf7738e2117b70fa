"""Which result lines become points, and what wrong files say."""

from pathlib import Path

import pytest

from clip_la.errors import UserError
from clip_la.scaling.results import all_points, finished, read_results, result_points
from clip_la.scaling.rows import parse_filters


def test_the_error_and_compute_of_a_line(write_lines, result_line) -> None:
    path = write_lines([result_line(0.625)])
    (point,) = result_points([path]).points
    assert point.error == 0.375
    assert point.compute == 1.5e7 * 40000
    assert (point.error_low, point.error_high) == pytest.approx((0.345, 0.395))
    assert point.where == f"{path}:1"


def test_which_lines_enter_and_why_others_do_not(write_lines, result_line) -> None:
    lines = [
        result_line(0.30, run_id="a"),
        result_line(0.31, run_id="b", samples_seen=20000),
        result_line(0.32, run_id="c", schedule="constant"),
        result_line(0.33, run_id="c-40k", schedule="cooldown", parent_run_id="c"),
        result_line(0.34, run_id="d", samples_seen=None),
        result_line(0.35, run_id="e", schedule="cooldown", samples_seen=30000),
        result_line(0.36, run_id="a"),
        result_line(0.20, run_id="a", eval_image_size=64),
    ]
    path = write_lines(lines)
    selection = result_points([path])
    assert [(point.run, point.source, round(1 - point.error, 2)) for point in selection.points] == [
        ("a", "a", 0.36),
        ("c", "c-40k", 0.33),
    ]
    assert [row.fields["run_id"] for row in finished(read_results([path]))] == ["a", "c-40k", "a"]
    assert {(item.what.split()[0], item.reason) for item in selection.left_out} == {
        ("a", "evaluated again in a later line"),
        ("a", "evaluated at another image size than it was trained at"),
        ("b", "cosine run before the end of its budget"),
        ("c", "schedule 'constant' without a cool-down"),
        ("d", "samples_seen is not recorded"),
        ("e", "cooldown run before the end of its budget"),
    }


def test_the_mean_over_targets_and_its_interval(write_lines, result_line) -> None:
    lines = [
        result_line(0.30, dataset="twemoji"),
        result_line(0.50, dataset="openmoji"),
        result_line(0.40, dataset="twemoji", run_id="other"),
    ]
    selection = result_points([write_lines(lines)], targets=["twemoji", "openmoji"])
    (point,) = selection.points
    assert point.error == pytest.approx(0.6)
    # Two independent half-widths of 0.03 below (accuracy's upper bound) and 0.02 above.
    assert point.error_low == pytest.approx(0.6 - 0.03 / 2**0.5)
    assert point.error_high == pytest.approx(0.6 + 0.02 / 2**0.5)
    assert selection.reasons() == [("not evaluated on every target", 1)]


def test_a_folder_stands_for_the_results_below_it(write_lines, result_line, tmp_path) -> None:
    write_lines([result_line(0.3, run_id="a")], "runs/a/results.jsonl")
    write_lines([result_line(0.4, run_id="b")], "runs/b/results.jsonl")
    assert [point.run for point in result_points([tmp_path / "runs"]).points] == ["a", "b"]


@pytest.mark.parametrize("content", ["", '{"run_id": "c", "see'])
def test_a_run_killed_at_its_first_line_is_left_out_of_its_folder(
    write_lines, result_line, tmp_path, capsys, content: str
) -> None:
    folder = tmp_path / "runs"
    write_lines([result_line(0.3, run_id="a")], "runs/a/results.jsonl")
    cut = write_lines([], "runs/b/results.jsonl")
    cut.write_text(content)
    for selection in (result_points([folder]), *all_points([folder])[0]):
        assert [point.run for point in selection.points] == ["a"]
        (left_out,) = selection.left_out
        assert (left_out.where, left_out.what) == (str(cut), "b")
        assert left_out.reason == "no results in its file, which is empty or was cut short"
    # Named by itself it is what was asked for.
    with pytest.raises(UserError, match=f"^{cut}: no results in it$"):
        result_points([folder, cut])
    (folder / "a/results.jsonl").unlink()
    with pytest.raises(UserError, match=f"^{cut}: no results in it$"):
        result_points([folder])


def test_filters_leave_only_matching_lines(write_lines, result_line) -> None:
    path = write_lines([result_line(0.3, run_id="a"), result_line(0.4, run_id="b", seed=1)])
    (point,) = result_points([path], filters=parse_filters(["seed=1"])).points
    assert point.run == "b"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "no results in it"),
        (["", "  "], "no results in it"),
        (['{"run_id": "a",'], "results.jsonl:1: not JSON"),
        (["[1, 2]"], "results.jsonl:1: not a JSON object"),
        (['{"run_id": "a"}'], "results.jsonl:1: no field seed, model, attention"),
    ],
)
def test_a_damaged_file_names_its_line(write_lines, lines: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        result_points([write_lines(lines)])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"metrics": {"top1": {"value": 30.0}}}, "results.jsonl:2: top1 is 30.0, not a fraction"),
        ({"metrics": {"top1": {"value": "x"}}}, "results.jsonl:2: metric 'top1' has no numeric 'value'"),
        ({"metrics": {"top1": {"value": True}}}, "results.jsonl:2: metric 'top1' has no numeric 'value'"),
        (
            {"metrics": {"top1": {"value": 0.3, "low": "x", "high": 0.4}}},
            "results.jsonl:2: metric 'top1': 'low' is 'x', not a number",
        ),
        ({"flops_per_sample": 10**400}, f"'flops_per_sample' is 1{'0' * 400}, not a positive number"),
        ({"metrics": []}, "results.jsonl:2: 'metrics' is not a JSON object"),
        ({"image_attention": 7}, "results.jsonl:2: 'image_attention' is 7, not a text$"),
        ({"text_attention": ["a"]}, r"results.jsonl:2: 'text_attention' is \['a'\], not a text$"),
        ({"model": {"a": 1}}, "results.jsonl:2: 'model' is {'a': 1}, not a text$"),
        ({"dataset": 3}, "results.jsonl:2: 'dataset' is 3, not a text$"),
        ({"samples_seen": [1], "budget_samples": [1]}, r"results.jsonl:2: 'samples_seen' is \[1\], not a number$"),
        ({"run_id": {}}, "results.jsonl:2: 'run_id' is {}, not a text or a number$"),
        ({"data_hash": ["a"]}, r"results.jsonl:2: 'data_hash' is \['a'\], not a text or a number$"),
        ({"flops_per_sample": -1}, "results.jsonl:2: 'flops_per_sample' is -1, not a positive number"),
        ({"num_samples": 100}, "differ in num_samples"),
        ({"templates_hash": "t1"}, "differ in templates_hash .* choose with --where templates_hash=VALUE"),
    ],
)
def test_a_wrong_line_is_named(write_lines, result_line, fields: dict, says: str) -> None:
    path = write_lines([result_line(0.3), {**result_line(0.4, run_id="b"), **fields}])
    with pytest.raises(UserError, match=says):
        result_points([path])


def test_lines_of_other_tasks_take_no_ones_place(write_lines, result_line) -> None:
    zero_shot = [result_line(0.3, run_id=run, task="zeroshot_classification") for run in "ab"]
    probes = [result_line(0.9, run_id=run, task="linear_probe", train_dataset="t", shots=1) for run in "ab"]
    path = write_lines([*zero_shot, *probes])
    with pytest.raises(UserError, match="differ in task "):
        result_points([path])
    for task, error in (("zeroshot_classification", 0.7), ("linear_probe", 0.1)):
        points = result_points([path], filters={"task": task}).points
        assert [point.error for point in points] == pytest.approx([error] * 2)
    path = write_lines([*probes, *({**line, "shots": 5} for line in probes)])
    with pytest.raises(UserError, match="differ in shots"):
        result_points([path])


def test_results_on_other_content_under_one_name_do_not_compare(write_lines, result_line) -> None:
    def hashes(*values: str | None) -> list:
        lines = [result_line(0.3, run_id=str(i), data_hash=value) for i, value in enumerate(values)]
        return list(result_points([write_lines(lines)]).points)

    with pytest.raises(UserError, match="differ in data_hash"):
        hashes("00aa", "00bb")
    # Lines of before do not say it, and what was read from elsewhere has a hash of its own kind.
    assert len(hashes("00aa", None, "remote-00cc", "unknown-00dd", "00aa")) == 5
    # A set that was mended: the later line of each run counts, and these agree.
    lines = [result_line(0.1 * (2 + i), run_id=run, data_hash=own) for i, own in enumerate(("x", "y")) for run in "ab"]
    assert [point.error for point in result_points([write_lines(lines)]).points] == pytest.approx([0.7, 0.7])


def test_unknown_names_come_with_the_nearest(write_lines, result_line) -> None:
    path = write_lines([result_line(0.3), result_line(0.4, dataset="concepts")])
    with pytest.raises(UserError, match="unknown target 'concept'; did you mean concepts"):
        result_points([path], targets=["concept"])
    with pytest.raises(UserError, match="unknown metric 'top11'; did you mean top1"):
        result_points([path], targets=["concepts"], metric="top11")
    with pytest.raises(UserError, match="unknown field 'sed'; did you mean seed"):
        result_points([path], filters={"sed": "0"})
    with pytest.raises(UserError, match="unknown value of 'model' 'vit_nan'; did you mean vit_nano"):
        result_points([path], filters={"model": "vit_nan"})
    with pytest.raises(UserError, match=r"results on 2 data sets \(renditions, concepts\): choose with --target"):
        result_points([path])


def test_absent_files_and_wrong_filters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*absent\.jsonl"):
        result_points([tmp_path / "absent.jsonl"])
    with pytest.raises(UserError, match=r"no results\.jsonl below"):
        result_points([tmp_path])
    with pytest.raises(UserError, match="a filter is FIELD=VALUE, not 'seed'"):
        parse_filters(["seed"])
    with pytest.raises(UserError, match="two filters on 'seed'"):
        parse_filters(["seed=1", "seed=2"])


def test_no_line_that_enters_says_why(write_lines, result_line) -> None:
    path = write_lines([result_line(0.3, schedule="constant"), result_line(0.3, schedule="constant", run_id="b")])
    with pytest.raises(UserError, match=r"no point .* enters the fit \(2 x schedule 'constant' without a cool-down"):
        result_points([path])
