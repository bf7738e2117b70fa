"""`python scripts/study.py`: everything that the study shows, from its tables; wrong tables give one line."""

import csv
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).parents[1]
TABLE = REPO / "results" / "study" / "scenes.csv"


@pytest.fixture
def study(monkeypatch):
    """The script as a module; its sibling is found as where it is run."""
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import study

    yield study
    own = ("study", "study_part", "study_laws", "tokens_table", "plot_curves")
    for name in (*own, "plot_attention", "attention_table", "attention_text", "attention_runs"):
        sys.modules.pop(name, None)


# One seed at one rate a size, whatever else the table holds by now.
RATES = {"vit_w64": 2e-3, "vit_w128": 2e-3, "vit_ti16": 1e-3, "vit_s16": 1e-3}


def is_first(row: dict[str, str]) -> bool:
    return row["seed"] == "0" and float(row["learning_rate"]) == RATES[row["model"]]


def some_rows(path: Path, keep) -> None:
    """The study's rows of the first seed that `keep` wants, as a table."""
    header, *rows = TABLE.read_text(encoding="utf-8").splitlines(keepends=True)
    first = [row for row in rows if is_first(next(csv.DictReader([header, row])))]
    path.write_text("".join([header, *filter(keep, first)]), encoding="utf-8")


def losses(kind: str) -> list[dict[str, str]]:
    """The rows of a kind's contrastive losses."""
    with TABLE.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    wanted = (kind, "contrastive_loss")
    return [row for row in rows if (row["attention"], row["metric"]) == wanted and is_first(row)]


def by_law(rows: list[dict[str, str]], compute: float) -> float:
    """The loss at some compute by the line through the logarithms of the rows."""
    x, y = np.log10([[float(row["forward_flops"]), float(row["value"])] for row in rows]).T
    return float(10 ** np.polyval(np.polyfit(x, y, 1), np.log10(compute)))


def test_pages_show_the_tables_as_they_are(study, monkeypatch) -> None:
    """Without the laws, whose last digits hang on the machine."""
    import study_part

    monkeypatch.chdir(TABLE.parent)
    tables = study.find_tables()
    assert Path("scenes.csv") in tables
    assert Path("attention_scenes.csv") not in tables
    for metric in ("image_retrieval_recall@1", "contrastive_loss"):
        part = study_part.Part.of(tables, "scenes-unseen", metric)
        # `python scripts/study.py` writes both.
        for page, shown in (("README.md", part.means(largest=True)), ("tables.md", part.means())):
            assert shown in Path(page).read_text(encoding="utf-8")
        assert part.differences() in Path("tables.md").read_text(encoding="utf-8")
        for suffix in (".png", ".svg", ".html"):
            assert Path(part.stem + suffix).stat().st_size > 10_000


def test_one_call_makes_everything(study, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    some_rows(tmp_path / "a.csv", lambda row: "contrastive_loss" in row and (",softmax," in row or ",rala," in row))
    # The same runs in a second table count once.
    some_rows(tmp_path / "b.csv", lambda row: "contrastive_loss" in row and ",softmax," in row)
    (tmp_path / "README.md").write_text(f"before\n{study.BEGIN}\nold\n{study.END}\nafter\n")
    assert study.main(["--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    readme = (tmp_path / "README.md").read_text()
    facts = "[a.csv](a.csv), [b.csv](b.csv): 128 px, 65 image tokens, batch 1,024, 102,400 pairs."
    head = f"### Trained on `data/scenes/train`\n\n{facts}\n\n#### scenes-unseen, contrastive_loss\n"
    assert readme.startswith(f"before\n{study.BEGIN}\n\n{head}")
    assert readme.endswith(f"\n\n{study.END}\nafter\n")
    assert "old" not in readme
    # The loss of rala at the largest scale from the table, and the power law's prediction of it from all others.
    rala, num_softmax = sorted(losses("rala"), key=lambda row: float(row["forward_flops"])), len(losses("softmax"))
    measured, said = float(rala[-1]["value"]), by_law(rala[:-1], float(rala[-1]["forward_flops"]))
    assert f" {measured:.3f} |" in next(line for line in readme.splitlines() if line.startswith("| vit_s16  | 409,600"))
    assert f"{measured:.3g} (1)" in printed
    # The smaller budgets are in the tables alone.
    assert "| vit_s16  |  57,344 |" in (tmp_path / "tables.md").read_text()
    assert "57,344" not in readme
    # Of each kind a run a size, with a branch for each budget.
    assert f"From {len(RATES)} runs of each kind" in readme
    assert f"{said:.3g} ({100 * (said / measured - 1):+.0f} %)" in printed
    # At equal model, from the curves of the first seed at each size, rala needs less; FLOPs a pair are a twelfth more.
    row = next(line for line in readme.splitlines() if "| `rala` / `softmax`" in line).split("|")
    samples, compute = (float(cell.split("[")[0]) for cell in row[5:7])
    assert row[7].strip() == "4 (4)"
    assert 0.4 < samples < 0.65
    assert compute / samples == pytest.approx(1.084, abs=0.02)
    assert "At equal model and error rala needs " in readme
    left_out = f"{num_softmax} left out\n  {num_softmax} x the same run as in an earlier table"
    assert f"{num_softmax + len(rala)} points entered, {left_out}" in (tmp_path / "tables.md").read_text()
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"scenes_unseen_loss.png", "scenes_unseen_loss.svg", "scenes_unseen_loss.html", "tables.md"} <= set(written)
    assert study.main(["--folder", str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_tables_of_attentions_elsewhere_leave_the_repository_alone(study, tmp_path, monkeypatch) -> None:
    """The figure is that of the folder's own tables, and lies beside them; the README is not of them."""
    pytest.importorskip("matplotlib")
    folder = tmp_path / "results" / "study"
    folder.mkdir(parents=True)
    (tmp_path / "README.md").write_text("mine\n")
    some_rows(folder / "few.csv", lambda row: ",rala," in row and "contrastive_loss" in row and ",57344," in row)
    rows = (study.FOLDER / "attention_scenes.csv").read_text().splitlines()
    kept = [row for row in rows if row.startswith(("task,", "scenes,softmax,", "scenes,rala,"))]
    (folder / "attention_scenes.csv").write_text("\n".join(kept) + "\n")
    monkeypatch.setattr(study.attention_table, "write_tables", lambda *_: pytest.fail("written into the repository"))
    before = (study.FOLDER / "attention_scenes.png").stat().st_mtime_ns
    assert study.main(["--folder", str(folder)]) == 0
    assert (study.FOLDER / "attention_scenes.png").stat().st_mtime_ns == before
    drawn = (folder / "attention_scenes.svg").read_text(encoding="utf-8")
    assert "<!-- rala -->" in drawn
    assert "<!-- gated_delta -->" not in drawn
    assert (tmp_path / "README.md").read_text() == "mine\n"


def test_too_few_points_and_one_kind_have_tables_without_laws(study, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    some_rows(tmp_path / "few.csv", lambda row: ",rala," in row and "contrastive_loss" in row and ",57344," in row)
    (page,) = study.make(files=False).values()
    (value,) = (row["value"] for row in losses("rala") if (row["model"], row["samples_seen"]) == ("vit_w64", "57344"))
    assert f"| vit_w64  |  57,344 |  {float(value):.3f} |" in page
    assert "one attention alone, rala: nothing to compare it with" in page
    some_rows(
        tmp_path / "few.csv", lambda row: "vit_w64,rala," in row and "contrastive_loss" in row and ",57344," in row
    )
    (page,) = study.make(files=False).values()
    assert "No laws: no fit for rala: 1 point, a fit needs at least 3." in page


def worlds_table(path: Path, changed, keep=lambda row: True) -> None:
    """The study's first rows that `keep` wants, each with the fields that `changed` gives it, as a table."""
    with TABLE.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if is_first(row) and keep(row)]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            row |= changed(row)
            error = float(row["value"]) if "loss" in row["metric"] else 1 - float(row["value"])
            writer.writerow(row | {"error": error, "error_low": "", "error_high": ""})


def test_each_corpus_has_a_heading_with_its_parts_and_tables(study, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    # By name the mixture's table comes first.
    mixture = {"train_data": "data/photos data/scenes/train", "train_pairs": "180000", "image_size": "64"}

    def photographs(row) -> dict[str, str]:
        of_classes = row["metric"].startswith("image")
        named = {"dataset": "photos-seen", "metric": "top1"} if of_classes else {"dataset": "scenes-unseen-64px"}
        return {**mixture, **named, "run": f"p{row['run']}"}

    few = "image_retrieval_recall@1", "contrastive_loss"
    worlds_table(Path("photographs.csv"), photographs, lambda row: row["metric"] in few)
    some_rows(Path("scenes.csv"), lambda row: "contrastive_loss" in row)
    Path("README.md").write_text(f"{study.BEGIN}\n{study.END}\n")
    pages = study.make(files=False)
    compared = ["Compute at equal error", "The largest scale, predicted from the smaller ones"]
    expected = [
        *("Trained on `data/scenes/train`", "scenes-unseen, contrastive_loss", *compared),
        *("Trained on `data/photos`, `data/scenes/train`", "photos-seen, top1", "scenes-unseen-64px, contrastive_loss"),
        *(*compared, "How kinds are compared"),
    ]
    headings = [line.lstrip("# ") for line in pages[Path("README.md")].splitlines() if line.startswith("#")]
    assert headings == expected
    facts = "[photographs.csv](photographs.csv): 64 px, 65 image tokens, batch 1,024, 180,000 pairs."
    assert facts in pages[Path("README.md")]
    own = ("### Paired differences", "### Learning rates", "### Laws")
    lines = [line for line in pages[Path("tables.md")].splitlines() if line.startswith("##")]
    assert [
        line.lstrip("# ") for line in lines if not line.lstrip("#").startswith(tuple(o[3:] for o in own))
    ] == expected


def test_classes_that_no_model_knows_have_means_and_no_law(study, tmp_path) -> None:
    """Top-1 of 0 everywhere, and one loss everywhere: no law, no plot that lies, no warning."""
    pytest.importorskip("matplotlib")
    import study_part

    def none_right(row) -> dict[str, str]:
        is_loss = "loss" in row["metric"]
        return {"value": "0.05" if is_loss else "0.0", "metric": "contrastive_loss" if is_loss else "top1"}

    worlds_table(
        tmp_path / "a.csv", none_right, lambda row: row["metric"] in ("image_retrieval_recall@1", "contrastive_loss")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert study.main(["--folder", str(tmp_path)]) == 0
    page = (tmp_path / "tables.md").read_text()
    assert "| vit_w64  |  57,344 |       0.0 |" in page
    num_points = sum(len(losses(kind)) for kind in ("softmax", "rala", "linear_mean", study_part.CONTROL))
    assert f"No laws: no point for target 'scenes-unseen' enters the fit ({num_points} x nothing right" in page
    assert not (tmp_path / "scenes_unseen_top1.png").exists()
    assert "contrastive_loss falls with compute" not in page


def test_a_control_of_a_few_points_has_no_laws_of_its_own(study, tmp_path, monkeypatch) -> None:
    """Its place would be taken by the next kind, whose laws are there already."""
    monkeypatch.chdir(tmp_path)
    few = ("57344", "94208")
    control = "softmax(conv=5,gate=linear,rope=axial)"

    def keep(row) -> bool:
        is_thin = row["attention"] == control and (row["model"], row["samples_seen"]) not in {
            ("vit_w64", n) for n in few
        }
        return row["metric"] == "contrastive_loss" and not is_thin

    worlds_table(Path("a.csv"), lambda row: {}, keep)
    Path("README.md").write_text(f"{study.BEGIN}\n{study.END}\n")
    page, readme = study.make(files=False).values()
    assert f"Too few points for a law, or none on one: `{control}`.\n" in readme
    assert [line for line in page.splitlines() if "# Laws" in line] == ["#### Laws, against `softmax`"]
    assert f"no fit for {control}: 2 points, a fit needs at least 3" in page


def test_a_multiplier_that_no_one_can_read_is_in_powers_of_ten(study) -> None:
    import study_laws

    assert study_laws.multiplier_text(20.484, (1.14, 7.668739e14)) == "20.5 [1.14, 7.67e+14]"
    assert study_laws.multiplier_text(0.3, (0.1, 999.0)) == "0.30 [0.10, 999.00]"


def test_a_prediction_is_compared_with_what_was_measured(study, tmp_path, monkeypatch, capsys) -> None:
    from clip_la.cli import main

    monkeypatch.chdir(tmp_path)
    some_rows(Path("scenes.csv"), lambda row: "contrastive_loss" in row and "vit_s16" not in row)
    given = ["--metric", "contrastive_loss", "--model", "vit_s16", "--samples", "409600", "--context-length", "64"]
    assert main(["scaling", "predict", "scenes.csv", "--format", "points", *given, "--out", "prediction.json"]) == 0
    of_frontier = ["--frontier", "pareto", "--resamples", "20", "--out", "prediction_frontier.json"]
    assert main(["scaling", "predict", "scenes.csv", "--format", "points", *given, *of_frontier]) == 0
    capsys.readouterr()
    some_rows(Path("scenes.csv"), lambda row: "contrastive_loss" in row and "vit_s16,linear_mean," not in row)
    page = study.make(files=False)[Path("tables.md")].partition("## Predicted before it was measured")[2]
    rows = {
        cells[1]: cells[2:-1] for line in page.splitlines() if len(cells := [c.strip() for c in line.split("|")]) > 2
    }
    # As measured, and off by as much as the line through the others is; linear_mean was not measured there.
    (largest,) = (row for row in losses("rala") if (row["model"], row["samples_seen"]) == ("vit_s16", "409600"))
    said = by_law([row for row in losses("rala") if row["model"] != "vit_s16"], float(largest["forward_flops"]))
    measured = float(largest["value"])
    run, seen, by_all, by_frontier = rows["`rala`"]
    assert (run, seen) == ("vit_s16, 409,600", f"{measured:.3g} (1)")
    assert by_all.startswith(f"{said:.3g} [")
    assert by_all.endswith(f"] ({100 * (said / measured - 1):+.0f} %)")
    # One table holds the records of a metric: a column each; an interval that none has is no cell's.
    assert rows["kind"] == ["run", "measured (runs)", "beta C^alpha, all points", "beta C^alpha, frontier pareto"]
    assert "[" not in by_frontier
    assert rows["`linear_mean`"][1] == "not yet"
    assert page.count("written at") == 2
    some_rows(Path("scenes.csv"), lambda row: "image_retrieval_recall@1" in row)
    assert study.main(["--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "study: error: prediction.json: no table has contrastive_loss on scenes-unseen\n"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("README.md", "no tables", "no table of points (CSV with the columns run, model, attention"),
        ("a.csv", "a,b\n1,2\n", "no table of points"),
    ],
)
def test_wrong_folders_give_one_line(study, tmp_path, capsys, name, text, says) -> None:
    (tmp_path / name).write_text(text)
    assert study.main(["--folder", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert study.main(["--folder", str(tmp_path / "absent")]) == 2
    with pytest.raises(study.UserError, match="lacks the markers"):
        study.with_part("no markers", "x", Path("README.md"))


def test_the_curves_are_drawn_and_another_table_gives_one_line(study, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    import plot_curves

    rows = (REPO / "results" / "study" / "curves.csv").read_text().splitlines(keepends=True)
    table = tmp_path / "curves.csv"
    table.write_text("".join(row for row in rows if row.startswith(("model", "vit_w64", "vit_s16,rala,"))))
    curves = plot_curves.read_curves(table)
    # From the first row of a trunk to the last of its branch.
    assert [points[-1][0] for points in curves.values()] == [409600] * len(curves)
    assert all(points == sorted(points) and points[0][1] > points[-1][1] for points in curves.values())
    assert plot_curves.main([str(table)]) == 0
    assert table.with_suffix(".svg").stat().st_size > 10_000
    table.write_text("model,loss\na,1\n")
    assert plot_curves.main([str(table)]) == 2
    assert "not a table of the columns model, attention, seed" in capsys.readouterr().err


@pytest.mark.parametrize("point", ["0,1.5", "1024,0", "1024,nan"])
def test_a_point_that_logarithmic_axes_cannot_show_gives_one_line(study, tmp_path, capsys, point) -> None:
    import plot_curves

    table = tmp_path / "curves.csv"
    table.write_text(",".join(plot_curves.COLUMNS) + f"\nvit_s16,rala,0,1e-3,{point}\n")
    assert plot_curves.main([str(table)]) == 2
    assert "no place on logarithmic axes" in capsys.readouterr().err


def test_two_data_sets_that_would_share_their_files_are_named(study, tmp_path, capsys) -> None:
    """Their names differ in signs that no file has, so that one's plot would be written over the other's."""
    some_rows(tmp_path / "a.csv", lambda row: ",rala," in row and "contrastive_loss" in row and ",57344," in row)
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "b.csv").write_text(text.replace("scenes-unseen", "scenes unseen"))
    assert study.main(["--folder", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "scenes-unseen, contrastive_loss and scenes unseen, contrastive_loss would both be drawn into" in said
    assert "scenes_unseen_loss.png" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "tables.md").exists()


def test_a_file_that_is_no_csv_is_named(study, tmp_path, capsys) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    assert study.main(["--folder", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("study: error: a.csv: not a CSV file")
    assert said.count("\n") == 1
