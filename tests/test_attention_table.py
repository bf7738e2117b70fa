"""The scripts that make the table of attentions and its figure: on hand-made runs, and on the real ones."""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scipy.stats import ttest_ind, ttest_rel

REPO = Path(__file__).parents[1]
SCENES, SEEN = "scenes-unseen/image_retrieval_recall@1", "tiny-imagenet-seen/top1"


@pytest.fixture(scope="module")
def table() -> Iterator[ModuleType]:
    sys.path.insert(0, str(REPO / "scripts"))
    try:
        import attention_table

        yield attention_table
    finally:
        sys.path.remove(str(REPO / "scripts"))


def write(path: Path, runs: Sequence[tuple[str, float, int, float]], column: str = SCENES, **more: Any) -> Path:
    """A sweep's table: (attention of both towers, rate, seed, value) a run."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        names = ["image_attention", "text_attention", "model.lr", "seed", column, "samples_seen", "loss", *more]
        writer.writerow([*names, "parameters", "flops_per_sample"])
        for attention, lr, seed, value in runs:
            writer.writerow([attention, attention, lr, seed, value, 512000, 1.5, *more.values(), 20, 2e9])
    return path


def rows_of(table: ModuleType, *paths: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    arms = table.arms_of(table.read_runs(paths))
    return table.arm_rows(arms), table.difference_rows(arms)


def test_an_arm_is_its_mean_over_seeds_at_its_best_rate(table: ModuleType, tmp_path: Path) -> None:
    runs = [("softmax", 1e-3, 0, 0.6), ("softmax", 1e-3, 1, 0.7), ("softmax", 2e-3, 0, 0.66), ("rala", 1e-3, 0, 0.5)]
    arms, _ = rows_of(table, write(tmp_path / "a.csv", runs))
    found = {(row["image_attention"], row["lr"]): row for row in arms if row["num_seeds"]}
    assert {key: row["is_best_rate"] for key, row in found.items()} == {
        ("softmax", 1e-3): False,
        ("softmax", 2e-3): True,
        ("rala", 1e-3): True,
    }
    assert found["softmax", 1e-3]["mean"] == pytest.approx(0.65)
    assert found["softmax", 1e-3]["values"] == "0.6 0.7"
    # sqrt(.65 x .35 / 4,000) x 1.96 either way.
    assert found["softmax", 1e-3]["low_over_images"] == pytest.approx(0.65 - 0.014781, abs=1e-6)


def test_rates_are_compared_over_the_seeds_that_both_have(table: ModuleType, tmp_path: Path) -> None:
    """Seed 1 is easy: the mean over all seeds would choose the rate that had it. Seed 2's rate was never compared."""
    runs = [
        ("softmax", 1e-3, 0, 0.5),
        ("softmax", 1e-3, 1, 0.9),
        ("softmax", 5e-4, 0, 0.55),
        ("softmax", 2e-3, 2, 0.95),
    ]
    arms, _ = rows_of(table, write(tmp_path / "a.csv", runs))
    assert {row["lr"]: row["is_best_rate"] for row in arms} == {5e-4: True, 1e-3: False, 2e-3: False}


def test_a_later_table_replaces_runs_and_unfinished_or_diverged_ones_enter_no_mean(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write(tmp_path / "a.csv", [("softmax", 1e-3, 0, 0.6), ("softmax", 1e-3, 1, 0.7), ("rala", 1e-3, 0, 0.5)])
    text = first.read_text()
    first.write_text(text.replace("0.5,512000", "0.5,1000").replace("0.7,512000,1.5", "0.7,512000,nan"))
    second = write(tmp_path / "b.csv", [("softmax", 1e-3, 0, 0.8)])
    arms, _ = rows_of(table, first, second)
    assert [(row["image_attention"], row["values"], row["num_diverged"]) for row in arms] == [("softmax", "0.8", 1)]
    assert "1 of 3 runs are not finished" in capsys.readouterr().err


def test_three_seeds_have_the_interval_of_their_paired_differences(table: ModuleType, tmp_path: Path) -> None:
    a, b = [0.61, 0.67, 0.7], [0.6, 0.63, 0.69]
    runs = [(name, 1e-3, seed, v) for name, values in (("rala", a), ("softmax", b)) for seed, v in enumerate(values)]
    _, differences = rows_of(table, write(tmp_path / "a.csv", runs))
    (row,) = differences
    expected = ttest_rel(a, b).confidence_interval(0.95)
    assert (row["attention"], row["against"], row["num_seeds"], row["spread"]) == ("rala", "softmax", 3, "paired")
    assert row["mean"] == pytest.approx(0.02, abs=1e-6)
    assert (row["low_over_seeds"], row["high_over_seeds"]) == pytest.approx(tuple(expected), abs=1e-6)
    assert row["rates"] == "equal, best of each"


def test_two_seeds_have_the_interval_of_the_pooled_spread(table: ModuleType, tmp_path: Path) -> None:
    """Of two arms of two seeds it is Student's for two samples of equal variance."""
    a, b = [0.61, 0.67], [0.6, 0.62]
    runs = [(name, 1e-3, seed, v) for name, values in (("rala", a), ("softmax", b)) for seed, v in enumerate(values)]
    _, (row,) = rows_of(table, write(tmp_path / "a.csv", runs))
    expected = ttest_ind(a, b).confidence_interval(0.95)
    assert row["spread"] == "pooled"
    assert (row["low_over_seeds"], row["high_over_seeds"]) == pytest.approx(tuple(expected), abs=1e-6)


def test_an_arm_is_compared_with_its_control_at_equal_and_at_best_rates(table: ModuleType, tmp_path: Path) -> None:
    control = "softmax(conv=5,gate=linear,rope=axial)"
    runs = [("rala", 1e-3, 0, 0.9), ("rala", 5e-4, 0, 0.8), (control, 5e-4, 0, 0.85), (control, 1e-3, 1, 0.7)]
    text = write(tmp_path / "a.csv", runs).read_text()
    # Attentions with commas are quoted as csv does; no seed is shared at 1e-3.
    assert f'"{control}"' in text
    _, differences = rows_of(table, tmp_path / "a.csv")
    found = [(row["against"], row["rates"], row["lr"], row["against_lr"], row["mean"]) for row in differences]
    assert found == [(control, "equal", 5e-4, 5e-4, -0.05), (control, "best of each", 1e-3, 5e-4, 0.05)]


def test_tasks_models_and_token_counts_stay_apart(table: ModuleType, tmp_path: Path) -> None:
    runs = [("softmax", 1e-3, 0, 0.6)]
    paths = [
        write(tmp_path / "a.csv", runs),
        write(tmp_path / "b.csv", runs, model="vit_s16", tokens=65),
        write(tmp_path / "c.csv", runs, model="vit_ti16", tokens=257),
        write(tmp_path / "d.csv", runs, column=SEEN, **{"tiny-imagenet-seen/num_samples": 900}),
    ]
    arms, _ = rows_of(table, *paths)
    found = [row for row in arms if row["num_seeds"]]
    assert [(row["task"], row["model"], row["tokens"]) for row in found] == [
        ("scenes", "vit_s16", 65),
        ("scenes", "vit_ti16", 65),
        ("scenes", "vit_ti16", 257),
        ("tiny-imagenet", "vit_ti16", 65),
    ]
    width = found[-1]["high_over_images"] - found[-1]["low_over_images"]
    assert width == pytest.approx(2 * 1.959964 * (0.24 / 900) ** 0.5, abs=2e-6)


@pytest.mark.parametrize(
    ("plan", "control"),
    [
        ("rala", "softmax(conv=5,gate=linear,rope=axial)"),
        ("linear_mean(conv=5,gate=sigmoid,cls=softmax)", "softmax(conv=5,gate=sigmoid)"),
        ("linear_mean*10+softmax*2", "softmax"),
        ("flatten*10+softmax*2", "softmax(conv=5)*10+softmax*2"),
    ],
)
def test_a_control_is_softmax_in_the_same_surroundings(table: ModuleType, plan: str, control: str) -> None:
    assert table.control_of(plan) == control


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("\xd0\xff", "not CSV in UTF-8"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n", "no column 'samples_seen'"),
        ("samples_seen,loss,seed\n1,1,0\n", "none of the columns"),
        (f"samples_seen,loss,{SCENES}\n1,low,.5\n", "could not convert"),
    ],
)
def test_a_bad_table_is_named(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    assert table.main([str(path), "--short"]) == 2
    assert message in (error := capsys.readouterr().err)
    assert str(path) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "raal"], "unknown attention with a linear layer 'raal'; did you mean rala"),
        (["--pairs", "softmax"], "unknown attention with a linear layer 'softmax'"),  # it is what others are against
        (["--max_loss", "low"], "argument --max-loss: invalid float value"),
    ],
)
def test_a_bad_option_is_named(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    path = write(tmp_path / "arms.csv", [(name, 1e-3, 0, 0.6) for name in ("softmax", "rala")])
    assert table.main([str(path), "--short", *options]) == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_the_tables_in_results_and_in_the_readme_are_those_of_the_runs(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.main(["--out", str(tmp_path)])
    capsys.readouterr()
    for name in ("attention.csv", "attention_differences.csv", "attention.md"):
        assert (REPO / "results" / name).read_text() == (tmp_path / name).read_text(), "run scripts/attention_table.py"
    arms = table.arms_of(table.read_runs(table.default_tables()))
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert sys.modules["attention_text"].summary(arms, table.difference_rows(arms)) in readme, "run scripts/study.py"


def test_the_figure_is_drawn(table: ModuleType, tmp_path: Path) -> None:
    import plot_attention

    labels = ["softmax", "softmax(conv=5)", "rala"]
    write(tmp_path / "arms.csv", [(name, 1e-3, seed, 0.6) for name in labels for seed in (0, 1)])
    assert plot_attention.main([str(tmp_path / "arms.csv"), "--out", str(tmp_path / "arms")]) == 0
    assert (tmp_path / "arms.png").read_bytes().startswith(b"\x89PNG")
    # Letters are drawn as shapes, each text with a comment that says it.
    drawn = (tmp_path / "arms.svg").read_text(encoding="utf-8")
    assert [label for label in labels if f"<!-- {label} -->" not in drawn] == []


def test_a_figure_without_its_line_is_refused_in_one_line(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import plot_attention

    path = write(tmp_path / "arms.csv", [("rala", 1e-3, 0, 0.6)])
    assert plot_attention.main([str(path), "--out", str(tmp_path / "arms")]) == 2
    said = capsys.readouterr().err
    assert said == "plot_attention: error: no run of vit_ti16 with softmax on scenes: the figure has it as its line\n"
    assert not (tmp_path / "arms.png").exists()


def test_the_summary_marks_an_attention_with_a_diverged_run(table: ModuleType, tmp_path: Path) -> None:
    runs = [("softmax", 1e-3, 0, 0.6), ("rala", 1e-3, 0, 0.7)]
    path = write(tmp_path / "a.csv", runs, outcome="ok")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1].replace("0.001", "0.002").replace("ok", "diverged")]) + "\n")
    arms = table.arms_of(table.read_runs([path]))
    text = sys.modules["attention_text"].summary(arms, table.difference_rows(arms))
    assert "| `softmax` | 60.0 (1) * |" in text
    assert "| `rala` | 70.0 (1) |" in text


def test_the_summary_shows_each_difference_at_the_rates_of_most_seeds(table: ModuleType, tmp_path: Path) -> None:
    """Seed 0 is best at 2e-3, where there is no other seed; two rates have two, 1e-3 the better ones."""
    runs = [("softmax", lr, seed, 0.6) for lr in (5e-4, 1e-3, 2e-3) for seed in (0, 1)]
    runs += [("rala", 5e-4, 0, 0.61), ("rala", 5e-4, 1, 0.62), ("rala", 1e-3, 0, 0.7), ("rala", 1e-3, 1, 0.72)]
    arms = table.arms_of(table.read_runs([write(tmp_path / "a.csv", [*runs, ("rala", 2e-3, 0, 0.75)])]))
    text = sys.modules["attention_text"].summary(arms, table.difference_rows(arms))
    lines = [line for line in text.splitlines() if line.startswith("| `rala` | `softmax` |")]
    assert len(lines) == 1
    assert "| 0.001 | 2 | +11.0 |" in lines[0]
