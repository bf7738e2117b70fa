"""Plugins: Python from outside that registers attention kinds (`register_attention`) or models (`register_model`).

Files come from `--plugin FILE` of any `clip-la` command, which puts them into the environment variable CLIP_LA_PLUGINS,
so that sweep workers, loader processes and torchrun's ranks have them too; installed packages name a module, or a
function of one, in the entry point group `clip_la.plugins`. The registers ask for them on first use.
"""

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from clip_la.errors import UserError

OPTION = "--plugin"
VARIABLE = "CLIP_LA_PLUGINS"
GROUP = "clip_la.plugins"

# Each file that was run, with what went wrong in it: a second try would find its names taken.
_files: dict[Path, UserError | None] = {}
# The value of VARIABLE that was loaded last; None before the first time.
_loaded: str | None = None


def take_option(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line without its `--plugin FILE` and `--plugin=FILE`, and the files; UserError where none follows."""
    rest, files = [], []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != OPTION:
            rest.append(word)
            continue
        file = value if equals else next(words, "")
        if not file or file.startswith("--"):
            raise UserError(f"{OPTION} expects a file: {OPTION} FILE.py")
        files.append(file)
    return rest, files


def use_plugins(files: Sequence[str | os.PathLike[str]]) -> None:
    """Loads plugin files, here and in every process that this one starts.

    Raises UserError, naming the file and the line, for one that is not there or does not run.
    """
    known = _paths(os.environ.get(VARIABLE, ""))
    added = [path for path in (Path(file).resolve() for file in files) if path not in known]
    for path in added:
        _run_file(path)
    if added:
        os.environ[VARIABLE] = os.pathsep.join(map(str, dict.fromkeys([*known, *added])))


def load_plugins() -> None:
    """Loads what CLIP_LA_PLUGINS names and what is installed, once. Raises UserError as use_plugins does."""
    global _loaded
    before, wanted = _loaded, os.environ.get(VARIABLE, "")
    if wanted == before:
        return
    from importlib.metadata import entry_points  # late: most calls end above

    _loaded = wanted  # first, for plugins use the registers themselves
    try:
        for point in entry_points(group=GROUP) if before is None else ():
            try:
                target = point.load()
                # A module has registered its kinds by being imported, a function does so when it is called.
                if callable(target):
                    target()
            except (Exception, SystemExit) as error:
                package = point.dist.name if point.dist else point.value
                raise UserError(
                    f"plugin {point.name} of the installed package {package}: {_what_went_wrong(error, '')};"
                    " mend or uninstall that package"
                ) from error
        for path in _paths(wanted):
            _run_file(path)
    except UserError:
        _loaded = before
        raise


def _paths(text: str) -> list[Path]:
    return [Path(file).resolve() for file in text.split(os.pathsep) if file]


def _run_file(path: Path) -> None:
    """Runs a plugin file once; raises the UserError of its first run again."""
    if path not in _files:
        # Marked first: a plugin that asks the registers for something must not start itself again.
        _files[path] = None
        try:
            if not path.is_file():
                raise UserError(f"no plugin file at {path}")
            # The path is in the name: two files may be called the same.
            name = f"clip_la_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
            spec = importlib.util.spec_from_file_location(name, path)
            if spec is None or spec.loader is None:
                raise UserError(f"plugin {path} is no Python file: its name must end in .py")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # dataclasses and pickle look their module up there
            try:
                spec.loader.exec_module(module)
            except (Exception, SystemExit) as error:
                del sys.modules[name]
                raise UserError(f"plugin {path}: {_what_went_wrong(error, str(path))}") from error
        except UserError as error:
            _files[path] = error
    if (error_before := _files[path]) is not None:
        raise error_before


def _what_went_wrong(error: BaseException, file: str) -> str:
    """An error in one line, with the line of `file` that it comes from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == file else (lines or [None])[-1]
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return (f"line {line}: " if line else "") + kind + text
