"""From result files to laws, pairs, text, JSON, table and figure."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from clip_la.errors import UserError
from clip_la.scaling.analysis import analyse
from clip_la.scaling.comparison import make_pairs
from clip_la.scaling.report import to_data, to_text
from clip_la.scaling.results import read_results, result_points
from clip_la.scaling.table import Table, results_table, with_suffix


def test_two_known_laws_and_their_difference(write_lines, two_laws) -> None:
    analysis = analyse(result_points([write_lines(two_laws)]), num_resamples=200)
    softmax, linear = analysis.fits
    assert (softmax.name, softmax.num_runs) == ("softmax", 12)
    assert (softmax.law.beta, softmax.law.alpha) == pytest.approx((3, -0.08), rel=1e-9)
    assert (linear.law.beta, linear.law.alpha) == pytest.approx((4, -0.09), rel=1e-9)
    assert softmax.alpha_interval == pytest.approx((-0.08, -0.08), rel=1e-6)
    (found,) = analysis.comparisons
    assert (found.num_pairs, found.num_runs, found.num_repeated) == (12, 12, 0)
    assert found.alpha_difference == pytest.approx(-0.01, rel=1e-6)
    assert found.alpha_difference_interval == pytest.approx((-0.01, -0.01), rel=1e-6)
    for multiplier in found.multipliers:
        needed = [(multiplier.error / beta) ** (1 / alpha) for beta, alpha in ((3, -0.08), (4, -0.09))]
        assert multiplier.value == pytest.approx(needed[1] / needed[0], rel=1e-6)
    assert len(found.multipliers) == 2


def test_the_answer_is_a_sentence_and_the_prediction_has_its_error(write_lines, two_laws) -> None:
    for line in two_laws:
        if line["attention"] == "linear":
            # 1.2 times softmax's compute at every error, one exponent.
            error = 3.0 * (line["flops_per_sample"] * line["samples_seen"] / 1.2) ** -0.08
            line["metrics"] = {"top1": {"value": 1 - error}}
    data = to_data(analyse(result_points([write_lines(two_laws)])))
    (found,) = data["comparisons"]
    assert found["sentence"].startswith("At equal error linear needs 1.20 [1.20, 1.20] times softmax's compute, and")
    assert found["compute_multiplier_at_one_exponent"]["value"] == pytest.approx(1.2)
    assert [fit["shared"] for fit in found["joint_fits"]] == [[], ["alpha"], ["alpha", "log10_beta"]]
    held_out = data["fits"][0]["largest_held_out"]
    assert held_out["relative_error"] == pytest.approx(
        held_out["predicted_error"] / held_out["measured_error"] - 1, abs=1e-12
    )
    assert abs(held_out["relative_error"]) < 1e-9


def test_pairs_agree_in_all_but_the_kind(write_lines, result_line) -> None:
    lines = [
        result_line(0.30, run_id="s0", attention="softmax"),
        result_line(0.31, run_id="s1", attention="softmax", seed=1),
        result_line(0.32, run_id="l0", attention="linear"),
        result_line(0.35, run_id="l0-again", attention="linear"),
        result_line(0.33, run_id="l2", attention="linear", seed=2),
        result_line(0.34, run_id="l3", attention="linear", seed=1, batch_size=256),
        result_line(0.36, run_id="l4", attention="linear", seed=1, train_data="other"),
    ]
    points = result_points([write_lines(lines)]).points
    softmax, linear = ([point for point in points if point.attention == kind] for kind in ("softmax", "linear"))
    pairs, num_repeated = make_pairs(softmax, linear, by="attention")
    # Only seed 0 pairs, and the better of its two linear runs.
    assert pairs.error.tolist() == [[pytest.approx(0.70), pytest.approx(0.65)]]
    assert num_repeated == 1


def test_branches_are_resampled_with_their_run(write_lines, two_laws) -> None:
    lines = [{**line, "parent_run_id": f"{line['model']}-{line['attention']}-{line['seed']}"} for line in two_laws]
    analysis = analyse(result_points([write_lines(lines)]), num_resamples=20)
    assert [fit.num_runs for fit in analysis.fits] == [6, 6]
    assert analysis.comparisons[0].num_runs == 6
    assert analysis.fits[0].alpha_interval is not None
    resampled = analyse(result_points([write_lines(lines)]), num_resamples=20, method="bca")
    assert resampled.fits[0].alpha_interval is None
    assert resampled.notes[0] == "no interval for softmax: 6 runs are too few to resample (at least 12)"


def test_a_kind_with_too_few_points_is_noted_and_the_rest_fitted(write_lines, two_laws, result_line) -> None:
    lines = [*two_laws, result_line(0.2, run_id="x", attention="linear_mean")]
    analysis = analyse(result_points([write_lines(lines)]), num_resamples=20)
    assert [fit.name for fit in analysis.fits] == ["softmax", "linear"]
    assert analysis.notes == ("no fit for linear_mean: 1 point, a fit needs at least 3",)


def test_too_few_points_of_every_kind(write_lines, result_line) -> None:
    path = write_lines([result_line(0.2), result_line(0.3, run_id="b", attention="linear")])
    with pytest.raises(UserError, match="no fit for softmax: 1 point, a fit needs at least 3; no fit for linear"):
        analyse(result_points([path]))


def test_unpaired_kinds_are_noted(write_lines, two_laws) -> None:
    lines = [{**line, "seed": line["seed"] + 10 * (line["attention"] == "linear")} for line in two_laws]
    analysis = analyse(result_points([write_lines(lines)]), num_resamples=20)
    assert analysis.comparisons == ()
    says = "no pairs of linear and softmax: no two runs differ in attention alone"
    assert analysis.notes[0] == f"{says} (seed is 10, 11 in one, 0, 1 in the other)"
    lines = [{**line, "seed": None} for line in two_laws]
    analysis = analyse(result_points([write_lines(lines)]), num_resamples=20)
    assert analysis.notes[0] == f"{says} (a pair shares its seed, and none is recorded)"


def test_models_of_other_patches_are_no_pair(write_lines, two_laws) -> None:
    def ratio(lines: list[dict]) -> float:
        (found,) = analyse(result_points([write_lines(lines)])).comparisons
        return found.num_pairs, found.error_ratio

    # The same runs at 257 tokens, whose errors are a third less: they are pairs of their own.
    finer = [{**line, "run_id": f"{line['run_id']}-257", "tokens": 257} for line in two_laws]
    for line in finer:
        line["metrics"] = {"top1": {"value": 1 - (1 - line["metrics"]["top1"]["value"]) / 1.5}}
    num, at_65 = ratio([{**line, "tokens": 65} for line in two_laws])
    assert ratio([*({**line, "tokens": 65} for line in two_laws), *finer]) == (2 * num, pytest.approx(at_65))


@pytest.mark.parametrize("frontier", ["bins", "pareto"])
def test_a_kind_of_one_run_has_no_interval_on_a_frontier(write_lines, two_laws, frontier) -> None:
    # Branches of one run: without it nothing is left to pick from.
    lines = [{**line, "parent_run_id": line["attention"]} for line in two_laws if line["seed"] == 0]
    analysis = analyse(result_points([write_lines(lines)]), frontier=frontier, num_resamples=20)
    assert [fit.alpha_interval for fit in analysis.fits] == [None, None]


def test_laws_that_are_flat_have_no_multiplier_and_no_warning(write_lines, two_laws, recwarn) -> None:
    lines = [{**line, "metrics": {"top1": {"value": 0.25}}} for line in two_laws]
    (found,) = analyse(result_points([write_lines(lines)])).comparisons
    assert (found.error_ratio, found.multipliers, found.shared_multiplier) == (1.0, (), None)
    assert not recwarn.list


def test_a_losss_mean_error_is_in_its_own_unit(write_lines, two_laws) -> None:
    for line in two_laws:
        line["metrics"]["loss"] = {"value": 2.0 + (line["seed"] == 0)}
    path = write_lines(two_laws)
    text = to_text(analyse(result_points([path], metric="loss")))
    assert " 0.5 " in text
    assert "50.00 %" not in text


def test_errors_that_do_not_fall_are_said(write_lines, two_laws) -> None:
    lines = [{**line, "metrics": {"top1": {"value": 1 - line["metrics"]["top1"]["value"]}}} for line in two_laws]
    assert "the error of softmax does not fall with compute: no scaling law" in " ".join(
        analyse(result_points([write_lines(lines)])).notes
    )


def test_by_another_field(write_lines, two_laws) -> None:
    path = write_lines([line for line in two_laws if line["attention"] == "softmax"])
    with pytest.raises(UserError, match=r"unknown field to fit by .seeds.; known: attention, .*, model"):
        analyse(result_points([path]), by="seeds")
    assert [fit.name for fit in analyse(result_points([path]), by="model", num_resamples=5).fits] == [
        "vit_micro",
        "vit_mini",
        "vit_nano",
    ]


def test_another_baseline_turns_the_comparison_around(write_lines, two_laws) -> None:
    selection = result_points([write_lines(two_laws)])
    usual, turned = (analyse(selection, by="attention", baseline=name, num_resamples=5) for name in (None, "linear"))
    assert [fit.name for fit in turned.fits] == ["linear", "softmax"]
    (there,), (back,) = usual.comparisons, turned.comparisons
    assert (back.name, back.baseline) == ("softmax", "linear")
    assert back.alpha_difference == pytest.approx(-there.alpha_difference)
    assert back.error_ratio == pytest.approx(1 / there.error_ratio)
    with pytest.raises(UserError, match=r"unknown baseline among the values of attention 'linea'; did you mean linear"):
        analyse(selection, by="attention", baseline="linea")


def test_text_and_json_say_the_same(write_lines, two_laws, result_line) -> None:
    lines = [*two_laws, result_line(0.1, run_id="plain", schedule="constant")]
    analysis = analyse(result_points([write_lines(lines)]), num_resamples=50)
    data = json.loads(json.dumps(to_data(analysis), allow_nan=False))
    softmax = data["fits"][0]
    assert (softmax["beta"], softmax["alpha"]) == pytest.approx((3, -0.08))
    assert (softmax["n"], softmax["n_fitted"], softmax["n_runs"]) == (12, 12, 12)
    assert data["compute"] == "forward FLOPs a pair x samples seen"
    assert data["left_out"][0]["reason"] == "schedule 'constant' without a cool-down"
    text = to_text(analysis)
    assert "-0.0800 [-0.0800, -0.0800]" in text
    assert "24 points entered, 1 left out" in text
    assert "plain (vit_nano, softmax) at 40000 samples" in text


def test_the_table_of_results(write_lines, result_line) -> None:
    lines = [
        result_line(0.111, dataset="a", num_classes=10),
        result_line(0.125, dataset="a", num_classes=10),
        result_line(0.25, dataset="b", num_classes=8),
        result_line(0.5, dataset="b", num_classes=8, run_id="l", attention="linear", samples_seen=160000),
    ]
    table = results_table(read_results([write_lines(lines)]))
    assert table.rows == (
        ("vit_nano", "softmax", "cosine", "40k", "600G", "12.5 [10.5, 15.5]", "1.2", "25.0 [23.0, 28.0]", "2.0"),
        ("vit_nano", "linear", "cosine", "160k", "2.4T", "-", "-", "50.0 [48.0, 53.0]", "4.0"),
    )
    lines_of_text = table.text().splitlines()
    assert lines_of_text[2].split() == " ".join(table.rows[0]).split()
    assert table.markdown().splitlines()[1].count("|") == 10


def test_the_table_keeps_tasks_apart(write_lines, result_line) -> None:
    lines = [
        result_line(0.25, dataset="a", task="zeroshot_classification"),
        result_line(0.75, dataset="a", task="linear_probe"),
        {**result_line(0.5, dataset="b", task="zeroshot_classification")},
        {**result_line(0.5, dataset="b", task="zeroshot_retrieval"), "metrics": {"recall": {"value": 1.0}}},
    ]
    table = results_table(read_results([write_lines(lines)]), chance=False)
    assert table.header[5:] == ("top1 % a (zeroshot_classification)", "top1 % a (linear_probe)", "top1 % b")
    assert [cell.split()[0] for cell in table.rows[0][5:]] == ["25.0", "75.0", "50.0"]


def test_tables_align() -> None:
    table = Table(("name", "n"), (("a", "5"), ("long", "12")))
    assert table.text() == "name   n\n----  --\na      5\nlong  12"
    assert table.markdown() == "| name |  n |\n| ---- | -: |\n| a    |  5 |\n| long | 12 |"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (999.7, "1k"), (160000, "160k"), (2.44e9, "2.44G"), (1e27, "1e+06Z")]
)
def test_suffixes(value: float, text: str) -> None:
    assert with_suffix(value) == text


def test_the_figure_as_png_and_svg(write_lines, two_laws, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from clip_la.scaling.plot import COLOURS, DPI, SIZE_INCHES, save_plot

    analysis = analyse(result_points([write_lines(two_laws)]), num_resamples=20)
    png, svg = save_plot(analysis, tmp_path / "figures" / "law.png")
    assert (png.name, svg.name) == ("law.png", "law.svg")
    with Image.open(png) as picture:
        assert picture.size == tuple(round(DPI * inches) for inches in SIZE_INCHES)
        pixels = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 20) or []}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[:2]} <= pixels
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    before = svg.read_bytes()
    save_plot(analysis, tmp_path / "figures" / "law")
    assert svg.read_bytes() == before


def test_the_figure_says_what_it_shows(write_lines, two_laws) -> None:
    pytest.importorskip("matplotlib")
    from clip_la.scaling.plot import draw

    figure = draw(analyse(result_points([write_lines(two_laws)]), num_resamples=20))
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel().endswith(r"forward FLOPs a pair $\times$ samples seen (FLOPs)")
    assert axes.get_ylabel() == r"zero-shot error $E$ = 1 $-$ top-1 accuracy"
    softmax, linear = (text.get_text() for text in figure.legends[0].get_texts())
    assert softmax == r"softmax: $E = 3\, C^{\,-0.080}$ $[{-0.080},\, {-0.080}]$, 12 points"
    assert linear.startswith(r"linear: $E = 4\, C^{\,-0.090}$")
    sizes = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sizes == ["vit_nano", "vit_micro", "vit_mini"]
    # Beside the axes, where it hides no point.
    figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().x0 > axes.get_window_extent().x1


def test_plot_paths_that_cannot_be(tmp_path: Path) -> None:
    from clip_la.scaling.plot import output_paths

    with pytest.raises(UserError, match=r"as PNG and SVG, not \.pdf"):
        output_paths(Path("law.pdf"))
    with pytest.raises(UserError, match="is a folder"):
        output_paths(tmp_path)
    assert output_paths(Path("a/law.v1")) == (Path("a/law.v1.png"), Path("a/law.v1.svg"))


def test_without_matplotlib_the_extra_is_named(write_lines, two_laws, tmp_path: Path, monkeypatch) -> None:
    from clip_la.scaling.plot import save_plot

    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    analysis = analyse(result_points([write_lines(two_laws)]), num_resamples=5)
    with pytest.raises(UserError, match=r"pip install 'clip_la\[plot\]'"):
        save_plot(analysis, tmp_path / "law")
