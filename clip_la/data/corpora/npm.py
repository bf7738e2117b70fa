"""Drawings from npm packages of iconify: pinned versions, installed without running their scripts."""

import html
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from shutil import which
from typing import Any

from clip_la.data.corpora.debian import cache_folder
from clip_la.errors import UserError

NPM_PACKAGES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/game-icons": "1.2.4",
}


def npm_modules(given: Path | None = None, pins: Mapping[str, str] = NPM_PACKAGES) -> Path:
    """The folder `node_modules` that holds the pinned packages; where they are missing, npm puts them into the cache.

    Args:
        given: a folder in which `npm install --prefix` has put them; nothing is then installed.

    Raises:
        UserError: there is no npm, the install failed, or `given` lacks a package or has another version.
    """
    prefix = given or cache_folder() / "npm"
    # Scripts of packages never run: drawings are all that is wanted of them.
    flags = ["--ignore-scripts", "--no-audit", "--no-fund"]
    command = ["npm", "install", "--prefix", str(prefix), *flags, *(f"{name}@{pin}" for name, pin in pins.items())]
    wrong = _wrong(prefix, pins)
    if wrong and given is None:
        if which("npm") is None:
            raise UserError(f"the wide corpus needs npm, or --npm FOLDER where elsewhere was run: {' '.join(command)}")
        prefix.mkdir(parents=True, exist_ok=True)
        print(f"installing {len(pins)} npm packages into {prefix}", file=sys.stderr)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if "error" in line.lower()] or ["npm failed"]
            raise UserError(f"{' '.join(command)}: {errors[0]}")
        wrong = _wrong(prefix, pins)
    if wrong:
        raise UserError(f"{prefix} lacks {', '.join(wrong)}: {' '.join(command)}")
    return prefix / "node_modules"


def find_npm_modules(given: Path | None = None, pins: Mapping[str, str] = NPM_PACKAGES) -> Path | None:
    """The folder that `npm_modules` gives, if nothing need be installed for it."""
    prefix = given or cache_folder() / "npm"
    return None if _wrong(prefix, pins) else prefix / "node_modules"


def _wrong(prefix: Path, pins: Mapping[str, str]) -> list[str]:
    """The pinned packages, as NAME@VERSION, that are not below `prefix` in this version."""
    wrong = []
    for name, pin in pins.items():
        try:
            found = json.loads((prefix / "node_modules" / name / "package.json").read_text(encoding="utf-8"))["version"]
        except (OSError, ValueError, KeyError):
            found = None
        if found != pin:
            wrong.append(f"{name}@{pin}")
    return wrong


class IconSet:
    """One iconify package: SVG drawings by name."""

    def __init__(self, modules: Path, package: str) -> None:
        folder = modules / package
        self._icons: dict[str, Any] = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        chars = folder / "chars.json"
        self.chars: dict[str, str] = json.loads(chars.read_text(encoding="utf-8")) if chars.exists() else {}

    @property
    def names(self) -> list[str]:
        """All drawings, other names for the same left out."""
        return sorted(self._icons["icons"])

    def svg(self, name: str, color: str = "black") -> str | None:
        """The drawing as a document of its own, single-colour ones in `color`; None if there is none of the name."""
        icon = self._icons["icons"].get(name) or self._parent(name)
        if icon is None:
            return None
        left, top = (icon.get(key, self._icons.get(key, 0)) for key in ("left", "top"))
        width, height = (icon.get(key, self._icons.get(key, 16)) for key in ("width", "height"))
        # Icons of one colour leave it to the page.
        body = re.sub(r"\bcurrentColor\b", html.escape(color), icon["body"])
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}">{body}</svg>'

    def _parent(self, name: str) -> dict[str, Any] | None:
        alias = self._icons.get("aliases", {}).get(name, {})
        # Turned and mirrored copies would want a transform; they are few.
        return self._icons["icons"].get(alias["parent"]) if set(alias) == {"parent"} else None
