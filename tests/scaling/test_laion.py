"""The published coefficients of Cherti et al. 2023 from their own table, and a small table with a known law."""

from pathlib import Path

import pytest

from clip_la.errors import UserError
from clip_la.scaling.analysis import Analysis, analyse
from clip_la.scaling.laion import laion_points

TABLE = Path(__file__).parents[3] / "shared/reference/laion_scaling/zeroshot_results.csv"
needs_table = pytest.mark.skipif(not TABLE.is_file(), reason="LAION's zeroshot_results.csv is not on this machine")
HEADER = "arch,samples_seen,gmacs_total,gmacs,upstream_dataset,downstream_dataset,acc1,image_retrieval_recall@5,name"


def fits(target: str, frontier: str, num_resamples: int = 300) -> Analysis:
    return analyse(laion_points([TABLE], target=target), frontier=frontier, num_resamples=num_resamples)


# Coefficients as published, in the paper's figure 1 and its notebook.
@needs_table
@pytest.mark.parametrize(
    ("target", "metric", "beta", "alpha"),
    [
        ("imagenet1k", "acc1", 5.86, -0.1114),
        ("imagenet_robustness", "acc1", 11.61, -0.1255),
        ("mscoco_captions", "image_retrieval_recall@5", 2.75, -0.0794),
        ("flickr30k", "image_retrieval_recall@5", 15.51, -0.1892),
    ],
)
def test_the_published_coefficients(target: str, metric: str, beta: float, alpha: float) -> None:
    analysis = fits(target, "bins")
    laion = analysis.fits[0]
    assert (laion.name, len(laion.points), analysis.selection.metric) == ("LAION", 29, metric)
    assert round(laion.law.beta, 2) == beta
    assert round(laion.law.alpha, 4) == alpha
    assert laion.alpha_interval is not None
    assert laion.alpha_interval[0] < alpha < laion.alpha_interval[1]


@needs_table
def test_all_points_and_the_three_openai_models() -> None:
    laion, openai = fits("imagenet1k", "all").fits
    assert (round(laion.law.beta, 2), round(laion.law.alpha, 4)) == (4.96, -0.1012)
    assert (round(openai.law.beta, 2), round(openai.law.alpha, 4)) == (23.18, -0.1638)
    assert len(openai.points) == 3
    # Three runs leave one degree of freedom: t is 12.7, and the interval holds the other law too.
    assert openai.alpha_interval == pytest.approx((-0.2774, -0.0501), abs=1e-4)


@needs_table
def test_the_interval_of_the_exponent_and_the_largest_run() -> None:
    laion = fits("imagenet1k", "bins", num_resamples=2000).fits[0]
    # A bootstrap made apart from this code gave [-0.138, -0.088].
    assert laion.alpha_interval == pytest.approx((-0.138, -0.088), abs=0.003)
    assert laion.held_out is not None
    # ViT-H/14 of 34 G samples: top-1 77.97 %.
    assert laion.held_out.measured_error == pytest.approx(1 - 0.77972)
    assert laion.held_out.predicted_error == pytest.approx(laion.held_out.measured_error, abs=0.02)


def small_table(tmp_path: Path, rows: list[str] | None = None, header: str = HEADER) -> Path:
    """Seven models on E = 2 C^-0.1, another target, and a model of OpenAI's."""
    if rows is None:
        rows = []
        for i in range(7):
            gmacs, samples = 3.0 * 2**i, 1e9
            error = 2 * (gmacs * samples) ** -0.1
            head = f"arch{i},{samples},{gmacs * samples},{gmacs},LAION-2B"
            rows += [f"{head},imagenet1k,{1 - error},,m{i}", f"{head},flickr30k,,{1 - error / 2},m{i}"]
        rows.append("ViT-B-32,1e9,7e9,7.0,CLIP-WIT,imagenet1k,0.5,,openai")
    path = tmp_path / "zeroshot_results.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_known_law_from_a_small_table(tmp_path: Path) -> None:
    path = small_table(tmp_path)
    analysis = analyse(laion_points([path], target="imagenet1k"), num_resamples=100)
    (fit,) = analysis.fits
    assert (fit.law.beta, fit.law.alpha) == pytest.approx((2, -0.1), rel=1e-9)
    assert fit.mean_absolute_error == pytest.approx(0, abs=1e-12)
    assert "no fit for OpenAI: 1 point" in analysis.notes[0]
    retrieval = analyse(laion_points([path], target="flickr30k"), num_resamples=10).fits[0]
    assert (retrieval.law.beta, retrieval.law.alpha) == pytest.approx((1, -0.1), rel=1e-9)


@pytest.mark.parametrize(
    ("target", "metric", "says"),
    [
        ("imagenet1", None, "unknown target 'imagenet1'; did you mean imagenet1k"),
        ("imagenet1k", "acc5", "unknown metric 'acc5'; did you mean acc1"),
        (None, None, "2 targets: name one with --target"),
    ],
)
def test_unknown_target_and_metric(tmp_path: Path, target: str | None, metric: str | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        laion_points([small_table(tmp_path)], target=target, metric=metric)


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        (HEADER, [], "only a header"),
        ("a,b", ["1,2"], "no column arch, samples_seen"),
        (HEADER, ["a,1e9,x,3,LAION-2B,imagenet1k,0.5,,m"], "zeroshot_results.csv:2: 'gmacs_total' is 'x'"),
        (HEADER, ["a,1e9,3e9,3,LAION-2B,imagenet1k,1.0,,m"], "1 x nothing wrong: an error of 0"),
        (HEADER, ["a,1e9,3e9,3,LAION-2B,imagenet1k,oops,,m"], "zeroshot_results.csv:2: 'acc1' is 'oops'"),
        (HEADER, ["a,1e9,3e9,3,LAION-2B,imagenet1k,,,m"], "none of the metrics acc1"),
        (HEADER, ["a,1e9,3e9"], "zeroshot_results.csv:2: 3 columns, the header has 9"),
    ],
)
def test_a_foreign_or_damaged_table(tmp_path: Path, header: str, rows: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        laion_points([small_table(tmp_path, rows, header)], target="imagenet1k")


def test_an_absent_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        laion_points([tmp_path / "zeroshot_results.csv"], target="imagenet1k")
