"""What a corpus is made from, as its manifest says it: versions and content of packages, content of drawings."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from clip_la.data.corpora.artists import STARTER_ARTISTS
from clip_la.data.corpora.clip_art import DRAWINGS
from clip_la.data.corpora.clip_art import PACKAGE as CLIP_ART_PACKAGE
from clip_la.data.corpora.debian import find_package_files
from clip_la.data.corpora.npm import NPM_PACKAGES, find_npm_modules
from clip_la.data.corpora.packages import CORPUS_PACKAGES, package_folder
from clip_la.errors import UserError
from clip_la.fingerprint import combined, file_hashes

MadeFrom = dict[str, str]
# Its version alone: its code differs from machine to machine, what it draws does not.
RENDERER = "resvg-py"


def files_state(folder: Path, paths: Iterable[Path]) -> str:
    """One hash of the names below `folder` and the content of these files, whatever their order.

    Times and places do not enter: a package that was installed anew, or elsewhere, makes the same corpus.
    """
    own = sorted(paths)
    names = (path.relative_to(folder).as_posix() for path in own)
    return combined(f"{name} {content}" for name, content in zip(names, file_hashes(own, len(own)), strict=True))


def renderer_version() -> str | None:
    """The version of what draws, None where it is not installed."""
    try:
        return version(RENDERER)
    except PackageNotFoundError:
        return None


def starter_inputs() -> MadeFrom | None:
    """What the starter corpus and scenes would be made from here; None where a package is missing."""
    try:
        state = {name: version(name) for name in CORPUS_PACKAGES}
        names = package_folder("emoji")
        # The version alone does not show that a package was edited, or of another branch with the same number.
        state["emoji"] += f" {files_state(names, (p for p in names.rglob('*') if p.suffix in ('.py', '.json')))}"
        for artist in STARTER_ARTISTS:
            paths = [svg for svg in artist.drawings().values() if isinstance(svg, Path)]
            state[artist.name] = files_state(paths[0].parent, paths)
    except (UserError, PackageNotFoundError, IndexError):
        return None
    return state


def wide_inputs(npm: Path | None, art: Path | None) -> MadeFrom | None:
    """What the wide corpus would be made from; None where that would have to be fetched first."""
    modules = find_npm_modules(npm)
    drawings = find_package_files(CLIP_ART_PACKAGE, DRAWINGS, art)
    starter = starter_inputs()
    if modules is None or drawings is None or starter is None:
        return None
    state = {name: files_state(modules, (modules / name).glob("*.json")) for name in NPM_PACKAGES}
    return {**starter, **state, CLIP_ART_PACKAGE: files_state(drawings, drawings.rglob("*.svg"))}
