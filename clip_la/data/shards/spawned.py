"""Worker processes of scripts that are not written to be run again by each worker."""

import contextlib
import sys
from collections.abc import Iterator
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        with _script_hidden():
            return SpawnProcess._Popen(process_obj)


class Spawned(SpawnContext):
    """The start method "spawn", whose processes import the script that is run only if it has a `__main__` guard.

    Without one they would do all of it again, such as removing a folder, before multiprocessing refuses to go on.
    """

    Process = _Process


@contextlib.contextmanager
def _script_hidden() -> Iterator[None]:
    script = sys.modules["__main__"]
    if not _is_guarded(script):
        # What has neither a spec nor a file is not imported by a new process.
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _is_guarded(script: ModuleType) -> bool:
    path = getattr(script, "__file__", None)
    try:
        return path is None or b"__main__" in Path(path).read_bytes()
    except OSError:
        return False
