"""`clip-la scaling report` as a user types it: what it writes, and one line for wrong input."""

import pytest
from PIL import Image

from clip_la.cli import main
from clip_la.scaling.html.drawn import save_figures
from clip_la.scaling.html.figures import Figures


def test_writes_the_page_and_the_figures(write_lines, noisy_laws, read_page, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    # matplotlib takes what stands between dollars for a formula.
    for line in noisy_laws:
        line["attention"] = "$x_{$" if line["attention"] == "linear" else "softmax"
    out, folder = tmp_path / "pages" / "report.html", tmp_path / "figures"
    assert main(["scaling", "report", str(write_lines(noisy_laws)), "--out", str(out), "--figures", str(folder)]) == 0
    names = ("error", "exponents", "multiplier-error", "multipliers", "residuals", "seconds", "tokens")
    assert sorted(each.name for each in folder.iterdir()) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("png", "svg", "pdf")
    )
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote 21 files to {folder}"
    page = read_page(out.read_text(encoding="utf-8"))
    assert sorted(own["id"] for own, _ in page.all("figure")) == sorted(names)
    for name in names:
        image = Image.open(folder / f"{name}.png").convert("L")
        assert image.width > 900
        assert image.getextrema() != (255, 255)
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF-")


def test_equal_input_gives_equal_figures(analysed, noisy_laws, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    figures = Figures(analysed(noisy_laws))
    first, second = (save_figures([figures.exponents()], figures.kinds, tmp_path / name) for name in "ab")
    assert [each.read_bytes() for each in first] == [each.read_bytes() for each in second]


def test_tables_of_points_and_run_folders_are_read_too(write_lines, noisy_laws, tmp_path, capsys) -> None:
    folder = write_lines(noisy_laws, "run/results.jsonl").parent
    table = tmp_path / "points.csv"
    assert main(["scaling", "points", str(folder), "--out", str(table)]) == 0
    pages = []
    for source, form in ((folder, "results"), (table, "points")):
        out = tmp_path / f"{form}.html"
        assert main(["scaling", "report", str(source), "--format", form, "--out", str(out)]) == 0
        pages.append(out.read_text(encoding="utf-8"))
    headlines = [page.split('<p id="headline">')[1].split("</p>")[0] for page in pages]
    assert headlines[0] == headlines[1]
    assert "At equal error linear needs" in headlines[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["FILE"], "the following arguments are required: --out"),
        (["FILE", "--out", "report.pdf"], "--out is report.pdf: the report is a file that ends in .html"),
        (["FILE", "--out", "FOLDER"], "the report is a file that ends in .html"),
        (["FILE", "--out", "OUT", "--figures", "FILE"], "a file: give a folder"),
        (["FILE", "--out", "OUT", "--law", "saturating"], "unknown clip-la scaling report option '--law'"),
        (["absent.jsonl", "--out", "OUT"], "no such file: absent.jsonl"),
        (["FILE", "--out", "OUT", "--metric", "top3"], "unknown metric 'top3'; did you mean top1"),
        (["FILE", "--out", "OUT", "--format", "points"], "no column run"),
        (["FILE", "--out", "OUT", "--interval", "t2"], "unknown interval 't2'"),
    ],
)
def test_wrong_input_is_one_line(write_lines, noisy_laws, tmp_path, capsys, options: list[str], says: str) -> None:
    places = {"FILE": write_lines(noisy_laws), "FOLDER": tmp_path, "OUT": tmp_path / "report.html"}
    assert main(["scaling", "report", *(str(places.get(option, option)) for option in options)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "report.html").exists()
