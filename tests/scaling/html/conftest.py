"""Pages of a known study, what stands in them, and Chromium from disk where it is installed."""

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from clip_la.scaling.analysis import Analysis, analyse
from clip_la.scaling.results import result_points

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 60.0


class Page(HTMLParser):
    """Every element of a page as (tag, attributes, its own text), in order; unclosed elements are an error."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        assert self.open == [], [self.elements[place] for place in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(len(self.elements))
        self.elements.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.elements[self.open[-1]][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        """(attributes, own text) of the elements of a tag with these attributes."""
        return [
            (own, "".join(text))
            for name, own, text in self.elements
            if name == tag and all(own.get(key) == value for key, value in attributes.items())
        ]

    def table(self, caption: str) -> list[list[tuple[dict[str, str | None], str]]]:
        """The cells of the body of a table, row by row."""
        inside, rows = False, []
        for tag, own, text in self.elements:
            if tag == "caption":
                inside = "".join(text).startswith(caption)
            elif inside and tag == "tr":
                rows.append([])
            elif inside and tag == "td":
                rows[-1].append((own, "".join(text)))
        return [row for row in rows if row]


@pytest.fixture
def read_page() -> Callable[[str], Page]:
    return Page


@pytest.fixture
def noisy_laws(two_laws: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The two laws with a little noise, the same in both kinds but for a part, so that intervals are not of width 0."""
    lines = []
    for number, line in enumerate(two_laws):
        error = (1 - line["metrics"]["top1"]["value"]) * (1 + 0.004 * ((number * 7) % 12 - 5.5) / 5.5)
        metrics = {"top1": {"value": 1 - error, "low": 0.98 - error, "high": 1.03 - error}}
        more = {"tokens": 65 if line["seed"] else 257, "gpu_seconds": line["samples_seen"] / 900}
        lines.append({**line, "metrics": metrics, **more})
    return lines


@pytest.fixture
def analysed(write_lines: Callable[..., Path]) -> Callable[..., Analysis]:
    """The analysis of result lines."""

    def run(lines: list[dict[str, Any]], **options: Any) -> Analysis:
        return analyse(result_points([write_lines(lines)]), **options)

    return run


class Chromium:
    """A headless Chromium, spoken to over its pipe by the DevTools protocol: no driver, no port."""

    def __init__(self, program: str, profile: Path) -> None:
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        # The browser reads from its descriptor 3 and writes to 4; a shell puts ours there.
        script = f'exec "$0" "$@" 3<&{read_there} 4>&{write_there}'
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        self.process = subprocess.Popen(
            ["bash", "-c", script, program, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self.read, self.write = read_here, write_here
        self.session: str | None = None
        self.rest = b""
        self.number = 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.read], [], [], PATIENCE_S)[0], "Chromium says nothing"
            part = os.read(self.read, 1 << 20)
            assert part, "Chromium has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Loads a file in a window of that width, from disk."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, code: str) -> Any:
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def move(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def complaints(self) -> list[Any]:
        """Console lines, exceptions, dialogs, refused content, and what was asked for from outside the page."""
        bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening")
        found: list[Any] = [event for event in self.events if event["method"] in bad]
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return found + [url for url in asked if not url.startswith(("file:", "data:"))]

    def close(self) -> None:
        self.session = None
        try:
            self.call("Browser.close")
        except (AssertionError, OSError):
            self.process.kill()
        self.process.wait(PATIENCE_S)
        os.close(self.read)
        os.close(self.write)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    browser = Chromium(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
