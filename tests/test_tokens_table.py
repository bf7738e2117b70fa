"""`scripts/tokens_table.py`: quality and speed of one model at several lengths, on hand-made points."""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).parents[1]
RECALL, LOSS = "image_retrieval_recall@1", "contrastive_loss"
COLUMNS = (
    *("run", "model", "attention", "tokens", "seed", "batch_size", "samples_seen", "flops_per_sample", "gpu_seconds"),
    *("train_data", "dataset", "metric", "value"),
)
# Kind, image tokens, seed, GPU-seconds, recall, loss.
RUNS = (
    ("rala", 65, 0, 200, 0.7, 0.5),
    ("softmax", 257, 0, 300, 0.5, 0.9),
    ("softmax", 65, 0, 100, 0.4, 1.0),
    ("softmax", 65, 1, 120, 0.5, 1.2),
    # No softmax with seed 2: it has no part in the speed.
    ("rala", 257, 0, 200, 0.8, 0.4),
    ("rala", 257, 2, 900, 0.9, 0.3),
    ("rala", 65, 1, 60, 0.8, 0.3),
)


@pytest.fixture(scope="module")
def tokens_table() -> Iterator[ModuleType]:
    sys.path.insert(0, str(REPO / "scripts"))
    try:
        import tokens_table

        yield tokens_table
    finally:
        sys.path.remove(str(REPO / "scripts"))
        for name in ("study", "study_part", "study_laws", "tokens_table", "plot_curves"):
            sys.modules.pop(name, None)


def write_points(
    path: Path, runs: Sequence[tuple[str, int, int, float, float, float]] = RUNS, model: str = "m"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for kind, tokens, seed, seconds, recall, loss in runs:
            own = [f"{kind}-{tokens}-{seed}", model, kind, tokens or "", seed, 512, 204800, tokens * 1e8, seconds or ""]
            writer.writerows([*own, "data/scenes", "scenes", *each] for each in ((RECALL, recall), (LOSS, loss)))
    return path


def write_speeds(path: Path) -> Path:
    lines = [
        "device,model,attention,what,tokens,training_ratio",
        *("NVIDIA H200,vit_s16,rala,block,65,.9", "NVIDIA H200,vit_s16,rala,tower,65,.55"),
        # Neither is in the study.
        *("NVIDIA H200,vit_s16,ttt,tower,65,.4", "NVIDIA H100,vit_b16,rala,tower,197,.7"),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_each_kind_and_length_has_its_means_and_its_speed_over_softmax(tokens_table, tmp_path) -> None:
    lengths = tokens_table.Lengths.read(write_points(tmp_path / "p.csv"), write_speeds(tmp_path / "s.csv"))
    table = lengths.table()
    assert table.header[-2:] == ("training speed / softmax", "tower alone / softmax (vit_s16, H200)")
    assert table.rows == (
        ("`softmax`", "65", "45.0 ± 7.1 (2)", "1.100 ± 0.141 (2)", "6.50", "110", "1.00", "–"),
        ("`softmax`", "257", "50.0", "0.900", "25.70", "300", "1.00", "–"),
        # sqrt(100/200 x 120/60).
        ("`rala`", "65", "75.0 ± 7.1 (2)", "0.400 ± 0.141 (2)", "6.50", "130", "1.00", "0.55"),
        ("`rala`", "257", "85.0 ± 7.1 (2)", "0.350 ± 0.071 (2)", "25.70", "550", "1.50", "–"),
    )


def test_what_was_not_measured_is_a_dash(tokens_table, tmp_path) -> None:
    runs = [("rala", 65, 0, 0, 0.7, 0.5), ("softmax", 65, 0, 100, 0.0, 1.0), ("linear", 257, 0, 50, 1.0, 0.1)]
    lengths = tokens_table.Lengths.read(write_points(tmp_path / "p.csv", runs), tmp_path / "absent.csv")
    assert [row[1:] for row in lengths.table().rows] == [
        ("65", "0.0", "1.000", "6.50", "100", "1.00"),
        # No softmax at 257 tokens, no seconds of rala.
        ("257", "100.0", "0.100", "25.70", "50", "–"),
        ("65", "70.0", "0.500", "6.50", "–", "–"),
    ]


def test_both_panels_show_the_measured_points(tokens_table, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    lengths = tokens_table.Lengths.read(write_points(tmp_path / "p.csv"), write_speeds(tmp_path / "s.csv"))
    quality, speed = lengths.draw().axes
    drawn = [[*zip(*line.get_data(), strict=True)] for line in quality.get_lines()]
    assert drawn[0] == [(65, pytest.approx(0.55)), (257, 0.5)]
    assert sorted(drawn[3]) == [(65, pytest.approx(v)) for v in (0.2, 0.3)] + [
        (257, pytest.approx(v)) for v in (0.1, 0.2)
    ]
    drawn = [[*zip(*line.get_data(), strict=True)] for line in speed.get_lines()]
    assert drawn == [[(65, 1), (257, 1)], [(65, pytest.approx(1)), (257, 1.5)], [(65, 0.55)]]
    colours = [line.get_color() for line in speed.get_lines()]
    assert colours[0] == quality.get_lines()[0].get_color() != colours[1] == colours[2]


def test_the_study_shows_the_table_beside_its_own(tokens_table, tmp_path) -> None:
    """The points lie in a folder of their own: they are no points of the study's laws."""
    pytest.importorskip("matplotlib")
    import study

    write_points(tmp_path / "tokens" / "points.csv")
    write_points(tmp_path / "scenes.csv", [run for run in RUNS if run[1] == 65])
    (tmp_path / "README.md").write_text(f"a\n{study.BEGIN}\n{study.END}\nb\n")
    assert study.main(["--folder", str(tmp_path)]) == 0
    readme = (tmp_path / "README.md").read_text()
    part = readme.partition("### Tokens against quality and speed\n")[2]
    assert "m, 204,800 samples in batches of 512, from [points.csv](tokens/points.csv)." in part
    assert "| `rala`    |          257 |" in part
    assert "![error and speed against tokens](tokens/tokens.png)" in part
    assert part.endswith(f"\n\n{study.END}\nb\n")
    assert "257" not in (tmp_path / "tables.md").read_text()
    written = {path.name: path.read_bytes() for path in (tmp_path / "tokens").iterdir()}
    assert set(written) == {"points.csv", "tokens.png", "tokens.svg"}
    assert study.main(["--folder", str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "tokens").iterdir()} == written


def test_wrong_tables_give_one_line(tokens_table, tmp_path, capsys) -> None:
    points, speeds = tmp_path / "p.csv", tmp_path / "s.csv"

    def said() -> str:
        assert tokens_table.main([str(points), "--speed", str(speeds)]) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "no such file" in said()
    write_points(points, [("softmax", 0, 0, 1, 0.5, 0.5)])
    points.write_text(points.read_text().replace(",0.0,", ",1e9,"))
    assert "p.csv:2: no 'tokens' recorded" in said()
    write_points(points)
    points.write_text(points.read_text().replace("rala-65-1,m", "rala-65-1,other"))
    assert "p.csv: one model and budget can be compared over tokens" in said()
    write_points(points)
    speeds.write_text("device,model\na,b\n")
    assert "s.csv: no table of speeds (device, model, attention, what, tokens, training_ratio)" in said()
