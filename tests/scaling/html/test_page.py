"""The page as text: self-contained, escaped, and its numbers those of the analysis."""

import base64
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_la.errors import UserError
from clip_la.scaling.analysis import analyse
from clip_la.scaling.html import page as page_module
from clip_la.scaling.html.curves import MAX_SHEET_BYTES, find_sheets
from clip_la.scaling.html.page import render
from clip_la.scaling.points_table import table_points, write_points
from clip_la.scaling.report import to_data, to_text
from clip_la.scaling.results import result_points

EVIL = "</svg></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;${title}"


def values(cells: list) -> list[float | None]:
    return [float(own["data-value"]) if "data-value" in own else None for own, _ in cells]


def test_the_page_loads_nothing_and_runs_one_script(analysed, noisy_laws, read_page) -> None:
    text = render(analysed(noisy_laws))
    page = read_page(text)
    links = [own[name] for _, own, _ in page.elements for name in ("src", "href") if name in own]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "://" not in re.sub(r"data:[^\"]*", "", text)
    assert not re.search(r"@import|url\((?!#)", text)
    ((_, script),) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    ((policy, _),) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert f"script-src 'sha256-{digest}'" in policy["content"]
    assert policy["content"].startswith("default-src 'none'")
    assert not any(name.startswith("on") for _, own, _ in page.elements for name in own)
    assert len(text.encode()) < 200_000


def test_equal_input_gives_equal_text(analysed, noisy_laws) -> None:
    assert render(analysed(noisy_laws)) == render(analysed(noisy_laws))


@pytest.mark.parametrize("method", ["t", "bca"])
def test_numbers_are_the_analysis(analysed, noisy_laws, read_page, method: str) -> None:
    analysis = analysed(noisy_laws, method=method, num_resamples=200)
    data = to_data(analysis)
    page = read_page(render(analysis))
    fits = page.table("Laws")
    assert [row[0][1] for row in fits] == [fit["name"] for fit in data["fits"]]
    for row, fit in zip(fits, data["fits"], strict=True):
        known = [fit[name] for name in ("alpha", "beta", "n", "n_fitted", "n_runs", "mean_absolute_error")]
        assert values(row[1:]) == [*known, fit["largest_held_out"]["relative_error"]]
        low, high = fit["alpha_interval"]
        assert row[1][1] == f"{fit['alpha']:.4f} [{low:.4f}, {high:.4f}]"
    ((row,), (found,)) = page.table("Paired"), data["comparisons"]
    shared = found["compute_multiplier_at_one_exponent"]
    assert values(row[1:9]) == [
        *(found["n_pairs"], found["n_runs"], found["error_ratio"], found["alpha_difference"]),
        found["difference_p_value"],
        *(each["value"] for each in found["compute_multipliers"]),
        shared["value"] if shared else None,
    ]
    points = page.table("Points")
    assert [values(row)[4:6] for row in points] == [[p.compute, p.error] for p in analysis.selection.points]
    assert [row[-1][1] for row in points] == [p.where for p in analysis.selection.points]


def test_headline_gives_the_planted_multiplier_and_exponents(analysed, two_laws, read_page) -> None:
    page = read_page(render(analysed(two_laws)))
    ((_, headline),) = page.all("p", id="headline")
    flops = np.repeat([1.5e7, 7e7, 2e8], 2) * np.tile([30011, 250007], 3)
    middle = 10 ** np.log10(flops).mean()
    # 4 (m C)^-0.09 = 3 C^-0.08, solved for m.
    multiplier = (3 / 4 * middle**-0.08) ** (-1 / 0.09) / middle
    given = re.match(r"At equal error linear needs ([\d.]+) .* its exponent differs by (\S+) ", headline)
    assert given is not None, headline
    assert float(given[1]) == pytest.approx(multiplier, rel=2e-3)
    assert float(given[2]) == pytest.approx(-0.01, abs=1e-6)
    assert "The multiplier's interval excludes 1, the exponents' excludes 0." in headline


def test_what_the_data_cannot_carry_is_said_and_no_band_is_drawn(analysed, noisy_laws, read_page) -> None:
    few = [line for line in noisy_laws if line["model"] == "vit_nano"]
    for line in few:
        line["run_id"] = f"{line['attention']}-{line['seed']}"
    text = render(analysed(few))
    page = read_page(text)
    ((_, headline),) = page.all("p", id="headline")
    assert "The data carry no interval for a compute multiplier" in headline
    assert "for a difference of exponents" in headline
    assert "excludes" not in headline
    assert 'class="band' not in text
    notes = [text for _, text in page.all("li")]
    assert any(note.startswith("no interval for softmax: 2 runs") for note in notes)
    assert any("decades of compute" in note for note in notes)
    assert "No band where the runs are too few: softmax, linear." in text


def test_pairs_too_few_and_rising_errors_have_no_multiplier(analysed, noisy_laws, read_page) -> None:
    softmax = [line for line in noisy_laws if line["attention"] == "softmax"]
    linear = [line for line in noisy_laws if line["attention"] == "linear"]
    # Two with a partner, and one without.
    few = [linear[0], linear[5], {**linear[8], "seed": 5}]
    ((_, headline),) = read_page(render(analysed(softmax + few))).all("p", id="headline")
    assert headline.startswith("linear against softmax, over 2 pairs of points of 2 pairs of runs: its error is ")
    assert headline.endswith("The pairs are too few for a difference of exponents or a compute multiplier.")
    rising = [
        {**line, "metrics": {"top1": {"value": 1 - line["metrics"]["top1"]["value"]}}}
        if line["attention"] == "linear"
        else line
        for line in noisy_laws
    ]
    ((_, headline),) = read_page(render(analysed(rising))).all("p", id="headline")
    assert headline.endswith("There is no compute multiplier: no error that both reach on a falling law.")
    assert "its exponent differs by +0." in headline


def test_other_axes_are_named(write_lines, noisy_laws, read_page) -> None:
    for axis, word in (("samples", "samples"), ("gpu-seconds", "GPU-seconds")):
        analysis = analyse(result_points([write_lines(noisy_laws)], axis=axis))
        text = render(analysis)
        ((_, headline),) = read_page(text).all("p", id="headline")
        assert f"times softmax's {word}" in headline
        assert "'s compute" not in text
        assert f"times softmax's {word}, and" in to_text(analysis)
        assert f"times softmax's {word}, and" in to_data(analysis)["comparisons"][0]["sentence"]


def test_one_kind_alone_is_no_comparison(analysed, noisy_laws, read_page) -> None:
    page = read_page(render(analysed([line for line in noisy_laws if line["attention"] == "softmax"])))
    ((_, headline),) = page.all("p", id="headline")
    assert headline.startswith("The data compare no two kinds over paired runs; the exponent of softmax is -0.0")
    assert page.table("Paired") == []
    assert [own["id"] for own, _ in page.all("figure")] == ["error", "residuals", "exponents", "seconds", "tokens"]


def test_intervals_that_include_no_difference_are_said_to(analysed, noisy_laws, read_page) -> None:
    linear = [line for line in noisy_laws if line["attention"] == "linear"]
    twins = [{**line, "attention": "softmax", "run_id": line["run_id"] + "s"} for line in linear]
    for number, line in enumerate(twins):
        top1 = line["metrics"]["top1"]["value"] + 0.002 * (-1) ** (number % 3)
        line["metrics"] = {"top1": {"value": top1}}
    ((_, headline),) = read_page(render(analysed(linear + twins))).all("p", id="headline")
    assert headline.endswith("The intervals include 1 and 0: no difference is shown.")


def test_names_from_files_are_text(analysed, noisy_laws, read_page) -> None:
    for line in noisy_laws:
        line |= {"model": EVIL + line["model"], "run_id": EVIL + line["run_id"], "dataset": EVIL, "train_data": EVIL}
        line["attention"] = EVIL if line["attention"] == "linear" else "softmax"
    noisy_laws.append({**noisy_laws[0], "schedule": EVIL, "run_id": EVIL})
    page = read_page(render(analysed(noisy_laws)))
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert page.all("title") == [({}, f"Scaling laws on {EVIL}")]
    assert page.table("Left out")[0][1][1] == f"schedule '{EVIL}' without a cool-down"
    assert EVIL in [text for _, text in page.all("button")]
    assert any(own.get("aria-label", "").startswith(f"{EVIL}vit_nano, softmax") for own, _ in page.all("path"))
    assert not any(name.startswith("on") for _, own, _ in page.elements for name in own)


def test_marks_lie_where_the_points_are(analysed, noisy_laws, read_page) -> None:
    analysis = analysed(noisy_laws)
    page = read_page(render(analysis))
    svg = [place for place, (tag, _, _) in enumerate(page.elements) if tag == "figure"]
    assert page.elements[svg[0]][1]["id"] == "error"
    marks = [own for tag, own, _ in page.elements[svg[0] : svg[1]] if tag == "path" and own.get("role") == "img"]
    points = analysis.selection.points
    assert len(marks) == len(points)
    placed = np.array([re.findall(r"[\d.]+", own["transform"]) for own in marks], float)
    for axis, wanted in ((0, [p.compute for p in points]), (1, [p.error for p in points])):
        logs = np.log10(wanted)
        slope, intercept = np.polyfit(logs, placed[:, axis], 1)
        assert np.abs(slope * logs + intercept - placed[:, axis]).max() < 0.1
        assert (slope > 0) == (axis == 0)
    for own, point in zip(marks, points, strict=True):
        assert own["aria-label"].endswith(point.where)
        assert f"error {point.error:.4g} [{point.error_low:.4g}, {point.error_high:.4g}]" in own["aria-label"]


def test_csv_reads_back_as_the_points(analysed, noisy_laws, read_page, tmp_path) -> None:
    analysis = analysed(noisy_laws)
    ((own, _),) = read_page(render(analysis)).all("a", id="csv")
    path = tmp_path / "points.csv"
    path.write_bytes(base64.b64decode(own["href"].partition("base64,")[2]))
    write_points([analysis.selection], tmp_path / "wanted.csv")
    assert path.read_bytes() == (tmp_path / "wanted.csv").read_bytes()
    found = table_points([path]).points
    assert [(p.compute, p.error, p.tokens) for p in found] == [
        (p.compute, pytest.approx(p.error, rel=1e-12), p.tokens) for p in analysis.selection.points
    ]


def test_too_many_points_are_one_line(analysed, noisy_laws, monkeypatch) -> None:
    monkeypatch.setattr(page_module, "MAX_BYTES", 50_000)
    with pytest.raises(
        UserError, match=r"the page would have 0\.\d MB, more than 0: 24 points are too many; choose some"
    ):
        render(analysed(noisy_laws))


def test_a_name_that_is_no_text_is_one_line(analysed, noisy_laws) -> None:
    noisy_laws[3]["run_id"] = "caf\udce9"
    with pytest.raises(UserError, match=r"no valid Unicode text: \.\.\..*caf.udce9"):
        render(analysed(noisy_laws))


def test_contact_sheets_fit_the_page_and_a_damaged_one_is_said(analysed, noisy_laws, read_page, tmp_path) -> None:
    folder = tmp_path / "runs" / "<b>"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    for name in ("a_contact_sheet.png", "contact_sheet-linear.png"):
        Image.fromarray(noise).save(folder / name)
    whole = (folder / "a_contact_sheet.png").read_bytes()
    (folder / "contact_sheet-cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "contact_sheet.html").write_text("no picture")
    sheets = find_sheets([tmp_path / "runs"])
    assert [Path(sheet.name).name for sheet in sheets] == [
        *("a_contact_sheet.png", "contact_sheet-cut.png", "contact_sheet-linear.png")
    ]
    assert sum(len(sheet.uri) for sheet in sheets) <= MAX_SHEET_BYTES
    page = read_page(render(analysed(noisy_laws), sheets=sheets))
    images = page.all("img")
    assert len(images) == 2
    assert all(
        own["src"].startswith("data:image/jpeg;base64,/9j/") and own["width"] == own["height"] for own, _ in images
    )
    assert any(text.startswith("damaged: ") for _, text in page.all("p", **{"class": "missing"}))
