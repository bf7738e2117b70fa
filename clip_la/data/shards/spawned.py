"""Worker processes of scripts that are not written to be run again by each worker."""

import sys
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any


class Spawned(SpawnContext):
    """The start method "spawn", whose processes import the script that is run only if it has a `__main__` guard.

    Without a guard each process would run the whole script again, which may remove a folder, before multiprocessing
    refuses to go on.
    """

    class Process(SpawnProcess):
        """A process that starts as said above."""

        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:
            script = sys.modules["__main__"]
            path = getattr(script, "__file__", None)
            try:
                is_guarded = path is None or b"__main__" in Path(path).read_bytes()
            except OSError:
                is_guarded = False
            if not is_guarded:
                # A new process imports the main module by its spec or file; one that has neither is left out.
                sys.modules["__main__"] = ModuleType("__main__")
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                sys.modules["__main__"] = script
