"""The page in headless Chromium, from disk: nothing in the console, all plots visible, tooltips, light and dark."""

import io
import itertools
from pathlib import Path

import pytest
from PIL import Image

from clip_la.scaling.html.curves import find_curves, find_sheets
from clip_la.scaling.html.page import render

NUM_PLOTS = 8
EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
# What a browser measures of all plots: (left, top, right, bottom) of the figure, of the picture, of each text in it.
BOXES = """
(() => {
  const box = e => {
    const r = e.getBoundingClientRect();
    return [r.left, r.top + scrollY, r.right, r.bottom + scrollY];
  };
  return [...document.querySelectorAll("figure > svg")].map(svg => ({
    figure: box(svg.parentElement), picture: box(svg), marks: [...svg.querySelectorAll(".mark")].map(box),
    texts: [...svg.querySelectorAll("text")].map(t => [t.textContent, ...box(t)]),
  }));
})()
"""
# A mark that is not below another one, in the window: its text and middle.
FREE_MARK = """
(() => {
  document.querySelector("#error").scrollIntoView();
  for (const mark of document.querySelectorAll("#error .mark")) {
    const r = mark.getBoundingClientRect(), x = r.left + r.width / 2, y = r.top + r.height / 2;
    if (document.elementFromPoint(x, y) === mark) return [mark.getAttribute("aria-label"), x, y];
  }
})()
"""
TIP = """(() => {
  const tip = document.getElementById("tip"), r = tip.getBoundingClientRect();
  const inside = r.left >= 0 && r.top >= 0 && r.right <= innerWidth && r.bottom <= innerHeight;
  return {hidden: tip.hidden, text: tip.textContent, inside: inside};
})()"""


def overlap(a: list[float], b: list[float], slack: float = 0.5) -> bool:
    return all(a[i] < b[i + 2] - slack and b[i] < a[i + 2] - slack for i in (0, 1))


@pytest.fixture
def page(noisy_laws, write_lines, analysed, tmp_path) -> Path:
    """A page with every plot: points with tokens and seconds, learning curves of two runs, a contact sheet."""
    for line in noisy_laws[::12]:
        folder = tmp_path / "runs" / line["attention"]
        folder.mkdir(parents=True)
        rows = "".join(f"{1000 * step},{5 / step**0.3}\n" for step in range(1, 300))
        (folder / "metrics.csv").write_text(f"samples_seen,loss\n{rows}")
        (folder / "config.yaml").write_text(f"model: {{attention: {line['attention']}}}\n")
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "contact_sheet.png")
    analysis = analysed(noisy_laws)
    out = tmp_path / "report.html"
    out.write_text(render(analysis, find_curves([tmp_path], "attention"), find_sheets([tmp_path])), encoding="utf-8")
    return out


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1600, False), (1600, True)])
def test_all_plots_are_visible_and_nothing_overlaps(chromium, page, width: int, dark: bool) -> None:
    chromium.open(page, width, dark=dark)
    assert chromium.complaints() == []
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    plots = chromium.evaluate(BOXES)
    assert len(plots) == NUM_PLOTS
    for plot in plots:
        left, top, right, bottom = plot["picture"]
        assert right - left > 200
        assert bottom - top > 80
        assert left >= 0
        assert right <= width
        assert plot["marks"]
        for text, *box in plot["texts"]:
            (x0, y0, x1, y1), (left, top, right, bottom) = box, plot["figure"]
            assert left <= x0 <= x1 <= right, text
            assert top <= y0 <= y1 <= bottom, text
        for one, other in itertools.combinations(plot["texts"], 2):
            assert not overlap(one[1:], other[1:]), (one, other)
    for one, other in itertools.combinations(plots, 2):
        assert not overlap(one["figure"], other["figure"])
    # A contact sheet that was decoded.
    assert chromium.evaluate(
        "[...document.images].every(i => i.complete && i.naturalWidth > 0) && document.images.length"
    )


def test_tooltips_by_pointer_and_keyboard(chromium, page) -> None:
    chromium.open(page, 1000)
    assert chromium.evaluate(TIP)["hidden"]
    text, x, y = chromium.evaluate(FREE_MARK)
    chromium.move(x, y)
    tip = chromium.evaluate(TIP)
    assert tip == {"hidden": False, "text": text, "inside": True}
    assert "error 0." in text
    chromium.move(2, 2)
    assert chromium.evaluate(TIP)["hidden"]
    # One stop of the tab key a plot, the arrows within it.
    stops = (
        "[...document.querySelectorAll('figure > svg')].map(s => s.querySelectorAll('.mark[tabindex=\"0\"]').length)"
    )
    assert chromium.evaluate(stops) == [1] * NUM_PLOTS
    chromium.evaluate("document.querySelector('#error .mark[tabindex=\"0\"]').focus()")
    first = chromium.evaluate(TIP)
    assert not first["hidden"]
    chromium.press("ArrowRight")
    second = chromium.evaluate(TIP)
    assert not second["hidden"]
    assert second["text"] != first["text"]
    assert second["text"] == chromium.evaluate("document.activeElement.getAttribute('aria-label')")
    chromium.press("ArrowLeft")
    assert chromium.evaluate(TIP)["text"] == first["text"]
    chromium.press("Escape")
    assert chromium.evaluate(TIP)["hidden"]


def test_light_and_dark_by_system_and_by_button(chromium, page) -> None:
    def ground() -> int:
        image = Image.open(io.BytesIO(chromium.screenshot())).convert("L")
        return image.getpixel((3, 3))

    for dark in (False, True):
        chromium.open(page, 800, dark=dark)
        assert (ground() < 60) == dark
        mark = "getComputedStyle(document.querySelector('#error .mark.k0')).fill"
        before = chromium.evaluate(mark)
        chromium.evaluate("document.getElementById('theme').click()")
        assert (ground() < 60) != dark
        assert chromium.evaluate(mark) != before


def test_columns_sort_by_value_and_kinds_hide(chromium, page) -> None:
    chromium.open(page, 1000)
    column = """(() => {
      const table = [...document.querySelectorAll("table")].find(t => t.caption.textContent === "Points");
      const place = [...table.rows[0].cells].findIndex(c => c.textContent === "error");
      table.rows[0].cells[place].querySelector("button").click();
      const values = [...table.tBodies[0].rows].map(row => Number(row.cells[place].dataset.value));
      return [table.rows[0].cells[place].ariaSort, values];
    })()"""
    way, values = chromium.evaluate(column)
    assert way == "ascending"
    assert values == sorted(values)
    assert len(values) == 24
    way, values = chromium.evaluate(column)
    assert way == "descending"
    assert values == sorted(values, reverse=True)
    chromium.evaluate("document.querySelector('[data-toggle=\"1\"]').click()")
    seen = "[...document.querySelectorAll('#error .mark')].filter(m => m.getClientRects().length).length"
    assert chromium.evaluate(seen) == 12


def test_no_name_from_a_file_runs_as_code(chromium, analysed, noisy_laws, tmp_path) -> None:
    for line in noisy_laws:
        line |= {"model": EVIL + line["model"], "run_id": EVIL + line["run_id"], "dataset": EVIL, "train_data": EVIL}
        line["attention"] = EVIL if line["attention"] == "linear" else "softmax"
    out = tmp_path / "report.html"
    out.write_text(render(analysed(noisy_laws)), encoding="utf-8")
    chromium.open(out, 1000)
    chromium.move(*chromium.evaluate(FREE_MARK)[1:])
    assert chromium.complaints() == []
    assert EVIL in chromium.evaluate("document.body.textContent")
    assert chromium.evaluate("document.images.length") == 0
