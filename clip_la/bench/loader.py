"""How fast whole loaders are, and where their time goes: in each thread of the training process, and in the workers."""

import itertools
import multiprocessing
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from clip_la.data.images.augment import Augmentation
from clip_la.data.stream.device import DeviceDecoder
from clip_la.data.stream.loader import ShardLoader
from clip_la.data.stream.order import WeightedSource
from clip_la.data.stream.stream import ShardStream
from clip_la.data.text.captions import Captions

PREFETCH_BATCHES = 4
WARM_UP_BATCHES_A_WORKER = 3
# The breakdown waits for the device after each part, so it is measured apart from the rate.
BREAKDOWN_SHARE = 0.5
CHUNKS = (64, 128, 256, 512, 1024)
ROUNDS = 4
MEASURED = "the loop that takes the batches"


class PartTimer:
    """Seconds by thread and part. While `waits` is set, each part ends only when the device has done its work."""

    def __init__(self, device: torch.device) -> None:
        self.waits = False
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._device = device

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Measures the block as `part` of the running thread."""
        start = time.perf_counter()
        yield
        if self.waits and self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self.seconds[threading.current_thread().name, part] += time.perf_counter() - start


def measure_loader(
    urls: Sequence[str],
    augmentation: Augmentation,
    *,
    workers: int,
    batch_size: int,
    device: str,
    share: float,
    seconds: float,
) -> dict[str, Any]:
    """One loader's rate on the device, by the clock, after each worker has warmed up.

    Args:
        share: of the JPEGs, that the device decodes.

    Returns:
        `pairs_per_s`; `worker_cores` and `main_cores`, busy processor cores of the workers together and of this process
        (None where the system does not tell); `us_a_pair`, thread -> part -> wall microseconds a pair, with waiting for
        the device after each part and therefore slower than the rate says.
    """
    target = torch.device(device)
    timer = PartTimer(target)
    stream = ShardStream(
        [WeightedSource(tuple(urls))],
        batch_size=batch_size,
        rank=0,
        world_size=1,
        workers=workers,
        seed=0,
        captions=Captions(),
        augmentation=augmentation,
        device_decode_fraction=share,
    )
    decoder = DeviceDecoder(augmentation, target, timer) if share or target.type == "cuda" else None
    loader = ShardLoader(stream, workers=workers, prefetch_batches=PREFETCH_BATCHES, decoder=decoder, timed=timer)
    batches = iter(loader)
    _take(batches, target, num_batches=WARM_UP_BATCHES_A_WORKER * max(workers, 1))
    cpu = _cpu_seconds()
    pairs, elapsed_s = _take(batches, target, seconds=seconds)
    busy = [after - before for before, after in zip(cpu, _cpu_seconds(), strict=True)]
    timer.seconds.clear()
    timer.waits = True
    with_waiting, _ = _take(batches, target, seconds=BREAKDOWN_SHARE * seconds)
    # Threads under plain names, in the order in which batches come through.
    by_thread: dict[str, dict[str, float]] = {}
    for (thread, part), part_s in timer.seconds.items():
        name = MEASURED if thread == threading.main_thread().name else thread
        by_thread.setdefault(name, {})[part] = 1e6 * part_s / max(with_waiting, 1)
    batches.close()  # type: ignore[attr-defined]
    return {
        "pairs_per_s": pairs / elapsed_s,
        "worker_cores": busy[0] / elapsed_s if workers and busy[0] else None,
        "main_cores": busy[1] / elapsed_s,
        "us_a_pair": by_thread,
    }


def _take(
    batches: Iterator[dict[str, Any]], device: torch.device, *, num_batches: int | None = None, seconds: float = 0.0
) -> tuple[int, float]:
    """Pairs taken, and seconds passed until the device had them all: so many batches, or batches for so long."""
    start, pairs = time.perf_counter(), 0
    for taken in itertools.count():
        if taken == num_batches or (num_batches is None and time.perf_counter() - start >= seconds):
            break
        pairs += len(next(batches)["keys"])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return pairs, time.perf_counter() - start


def _cpu_seconds() -> tuple[float, float]:
    """Processor seconds used so far by the child processes together, 0 where /proc is not, and by this process."""
    ticks = 0.0
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            # After the name in brackets, which may hold spaces: fields 14 and 15 are user and system time.
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def measure_device(
    urls: Sequence[str], augmentation: Augmentation, *, batch_size: int, device: str
) -> dict[str, dict[str, float]]:
    """Microseconds a pair of each part of the device's work on one batch, for several numbers of JPEGs a call.

    Nothing else runs meanwhile: these are the best that the device can do.
    """
    target = torch.device(device)
    stream = ShardStream(
        [WeightedSource(tuple(urls))],
        batch_size=batch_size,
        rank=0,
        world_size=1,
        workers=0,
        seed=0,
        captions=Captions(),
        augmentation=augmentation,
        device_decode_fraction=1.0,
    )
    batch = next(iter(stream))
    assert isinstance(batch, dict)
    result = {}
    for chunk in sorted({min(chunk, batch_size) for chunk in CHUNKS}):
        timer = PartTimer(target)
        decoder = DeviceDecoder(augmentation, target, timer, chunk=chunk)
        staged = decoder.stage(dict(batch))
        decoder.finish(dict(staged))  # compiles and allocates
        timer.seconds.clear()
        timer.waits = True
        for _ in range(ROUNDS):
            decoder.finish(dict(staged))
        total = {part: 1e6 * s / (ROUNDS * batch_size) for (_, part), s in timer.seconds.items()}
        result[str(chunk)] = total
    return result


def text_lines(
    loaders: Sequence[dict[str, Any]], device: str, on_device: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Results as text: of `measure_loader`, each with its `decode` and `workers`, and of `measure_device`."""
    lines = []
    for result in loaders:
        cores = result["worker_cores"]
        lines.append(
            f"loader, {result['workers']} workers, decode {result['decode']}, to {device}: "
            f"{result['pairs_per_s']:,.0f} pairs/s; busy: workers {'?' if cores is None else f'{cores:.1f}'} cores, "
            f"training process {result['main_cores']:.1f}"
        )
        for thread, parts in result["us_a_pair"].items():
            lines.append(f"  us a pair, {thread}: " + ", ".join(f"{part} {us:.1f}" for part, us in parts.items()))
    for chunk, parts in on_device.items():
        times = ", ".join(f"{part} {us:.1f}" for part, us in parts.items())
        lines.append(f"device alone, {chunk} JPEGs a call, us a pair: {times}")
    return lines
