"""How much host memory this process and its workers really hold: proportional set size, sampled from /proc."""

import os
import resource
import threading
from pathlib import Path

# Reading the sizes holds up the process that is read: seldom enough not to slow what is timed.
SAMPLE_S = 5.0
BYTES_PER_KB = 1024


def tree_bytes(pid: int | None = None) -> int:
    """Memory of a process (this one by default) and all its descendants in bytes; pages that they share with others are
    counted by their share. 0 where /proc is not."""
    tree: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The parent's id is the second field after the name, which stands in brackets and may hold spaces.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
        tree.setdefault(parent, []).append(int(entry.name))
    waiting, total = [os.getpid() if pid is None else pid], 0
    while waiting:
        current = waiting.pop()
        waiting += tree.get(current, [])
        try:
            lines = Path(f"/proc/{current}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * BYTES_PER_KB for line in lines if line.startswith("Pss:"))
    return total


class MemoryWatch:
    """While entered, samples the memory of this process and its workers; `figures` gives start and peak."""

    def __init__(self) -> None:
        self.start_bytes = self.peak_bytes = tree_bytes()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, tree_bytes())

    def __enter__(self) -> "MemoryWatch":
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def figures(self) -> dict[str, float]:
        """Gigabytes: with workers at the start and at the peak, and this process's own peak since it began."""
        own_peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KB
        sizes = {"start": self.start_bytes, "peak": self.peak_bytes, "own_peak": own_peak_bytes}
        return {f"host_{name}_gb": round(size / 1e9, 2) for name, size in sizes.items()}
