"""Runs that find no memory on a GPU that others have: they wait for it, and fail only where they do not fit alone."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from clip_la.data.corpora.scenes import build_scenes
from clip_la.sweep.places import VISIBLE, Slot, Worker
from clip_la.sweep.plan import expand, keep_manifest, read_manifest
from clip_la.sweep.planned_run import PlannedRun
from clip_la.sweep.runner import Sweep
from clip_la.sweep.schedule import RunQueue
from clip_la.sweep.worker import is_out_of_memory

from .runs import BATCH, BUDGETS, OPTIONS

WHOLE = {**OPTIONS, "budget_samples": 2 * BATCH}
NO_MEMORY = {"error": "OutOfMemoryError: CUDA out of memory.", "out_of_memory": True, "seconds": 1.0}


class Gpu:
    """Memory of 10 that the runs of several places share; each run holds its own amount until another cannot fit."""

    def __init__(self, needs: dict[str, int], refusals: int) -> None:
        self.needs, self.held = needs, dict[str, int]()
        self.log: list[tuple[str, bool]] = []
        self.changed = threading.Condition()
        # Runs stay until so many have been refused, so that the order of threads decides nothing.
        self.refusals_left = refusals


class GpuPlace:
    """A place on a Gpu whose runs end once nobody is left to be refused."""

    runs_per_gpu = 3
    gpu = "0"

    def __init__(self, device: Gpu) -> None:
        self._device = device
        self.rests = 0

    def train(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        device = self._device
        with device.changed:
            fits = sum(device.held.values()) + device.needs[name] <= 10
            device.log.append((name, fits))
            if not fits:
                device.refusals_left -= 1
                device.changed.notify_all()
                return dict(NO_MEMORY)
            device.held[name] = device.needs[name]
            assert device.changed.wait_for(lambda: device.refusals_left <= 0, timeout=60)
            del device.held[name]
        return {"error": None, "seconds": 1.0}

    def rest(self) -> None:
        self.rests += 1

    def close(self) -> None:
        pass


def test_a_run_beside_others_waits_for_their_memory(tmp_path: Path) -> None:
    # The longest is taken first, but needs what the two others leave only at their end.
    runs = expand({**WHOLE, "data.shards": "x"}, {"size": {"a": {}, "b": {}, "c": {"budget_samples": 2 * BATCH}}})
    device = Gpu({"a": 4, "b": 4, "c": 9}, refusals=1)
    # Whoever is third finds no memory; the run of 9 may come first, and then both others are refused beside it.
    said: list[str] = []
    places = [GpuPlace(device) for _ in range(3)]
    assert Sweep(runs, tmp_path, places, num_evaluations=lambda _: 0, report=said.append).run() == []
    refused = [name for name, fits in device.log if not fits]
    assert refused
    again = [line for line in said if "no memory on the GPU beside" in line]
    assert len(again) == len(refused)
    assert all(line.endswith((" other run: again later", " other runs: again later")) for line in again)
    assert sorted(name for name, fits in device.log if fits) == ["a", "b", "c"]
    assert not any("FAILED" in line for line in said)


@pytest.mark.parametrize("per_gpu", [1, 3])
def test_a_run_that_does_not_fit_alone_fails_and_says_so(tmp_path: Path, per_gpu: int) -> None:
    runs = expand({**WHOLE, "data.shards": "x"}, {"size": {"a": {}}})
    device, said = Gpu({"a": 11}, refusals=0), list[str]()
    places = [GpuPlace(device) for _ in range(per_gpu)]
    for place in places:
        place.runs_per_gpu = per_gpu
    elsewhere = GpuPlace(device)
    elsewhere.gpu = "1"
    places.append(elsewhere)
    assert Sweep(runs, tmp_path, places, num_evaluations=lambda _: 0, report=said.append).run() == ["a"]
    # Idle processes of other places may have had the memory: once more without them. A GPU of one place has none.
    assert device.log == [("a", False)] * (1 if per_gpu == 1 else 2)
    assert [place.rests for place in places] == ([0, 0] if per_gpu == 1 else [1, 1, 1, 0])
    assert said[-1].startswith(
        "[1/1] a: FAILED: no memory on the GPU with no other run of the sweep there: OutOfMemoryError"
    )


def plain_runs(*names: str) -> dict[str, PlannedRun]:
    return {name: PlannedRun(name, {}, {**OPTIONS, "budget_samples": BATCH}) for name in names}


def test_who_found_no_memory_comes_last_with_fewer_beside_it_and_at_last_alone(tmp_path: Path) -> None:
    runs = plain_runs("a", "b", "c", "d", "e", "f")
    queue = RunQueue(list(runs.values()), tmp_path, lambda run: False, lambda run, why: None)

    def taken(gpu: str = "0") -> str:
        found = queue.take(None, gpu)
        assert found is not None
        return found[0].name

    def end(name: str) -> None:
        queue.end(runs[name], is_failed=False)

    assert [taken(), taken(), taken()] == ["a", "b", "c"]
    # A run on another GPU takes none of this one's memory.
    assert taken("1") == "d"
    assert queue.put_back(runs["a"], had_whole_gpu=False) == "no memory on the GPU beside 2 other runs: again later"
    assert taken() == "e"
    end("b")
    # Beside two it found none: c and e are two.
    assert taken() == "f"
    end("e")
    end("f")
    assert taken() == "a"
    assert queue.put_back(runs["a"], had_whole_gpu=False) == "no memory on the GPU beside 1 other run: again later"
    end("c")
    assert taken() == "a"
    assert queue.put_back(runs["a"], had_whole_gpu=False) is None
    queue.end(runs["a"], is_failed=True)
    end("d")
    assert queue.take() is None
    assert [run.name for run in queue.failed] == ["a"]


def test_nobody_joins_a_run_at_its_last_try(tmp_path: Path) -> None:
    runs = plain_runs("a", "b", "c")
    queue = RunQueue(list(runs.values()), tmp_path, lambda run: False, lambda run, why: None)
    assert [queue.take(None, "0") for _ in range(2)] == [(runs["a"], None), (runs["b"], None)]
    queue.put_back(runs["a"], had_whole_gpu=False)
    queue.end(runs["b"], is_failed=False)
    queue.take(None, "0")  # c
    queue.end(runs["c"], is_failed=False)
    queue.take(None, "0")  # a alone, in a process that had trained others
    assert queue.put_back(runs["a"], had_whole_gpu=False) == (
        "no memory on the GPU beside what earlier runs left in their processes: again without these"
    )
    queue.take(None, "0")
    queue.waiting.append(runs["b"])
    threading.Timer(0.1, queue.close).start()
    assert queue.take(None, "0") is None
    assert queue.waiting == [runs["b"]]


def test_branches_wait_for_a_trunk_that_was_put_back(tmp_path: Path) -> None:
    runs = expand({**OPTIONS, **BUDGETS}, {"seed": [0, 1]})
    failed: list[str] = []
    queue = RunQueue(runs, tmp_path, lambda run: False, lambda run, why: failed.append(run.name))
    first, second = (queue.take(None, "0") for _ in range(2))
    assert first is not None
    assert second is not None
    assert queue.put_back(first[0], had_whole_gpu=False) is not None
    queue.end(second[0], is_failed=True)
    again = queue.take(None, "0")
    assert again is not None
    assert again[0] is first[0]
    assert sorted(failed) == ["seed1-n128", "seed1-n256"]


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("DataLoader worker is killed: out of memory"), False),
        (ValueError("no"), False),
    ],
)
def test_what_counts_as_no_memory_on_the_gpu(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory
    wrapped = RuntimeError("a compiler's own")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) is is_memory


def test_a_worker_whose_run_found_no_memory_ends_and_the_next_run_has_a_new_one(tmp_path: Path) -> None:
    build_scenes(tmp_path / "scenes", pairs=BATCH, size_px=32, quiet=True)
    # A loss of memory in the midst of a step, as far as the worker can tell.
    (tmp_path / "full.py").write_text(
        "import os, torch\nfrom clip_la.train.task import ContrastiveTask\nstep = ContrastiveTask.training_step\n"
        "def full(*args, **options):\n"
        f"    if os.path.exists({str(tmp_path / 'is_full')!r}): raise torch.OutOfMemoryError('CUDA out of memory.')\n"
        "    return step(*args, **options)\n"
        "ContrastiveTask.training_step = full\n"
    )
    shards = str(tmp_path / "scenes/train")
    (run,) = expand({**OPTIONS, "data.shards": shards, "budget_samples": BATCH}, {"seed": [0]})
    environment = {VISIBLE: "", "OMP_NUM_THREADS": "1", "CLIP_LA_PLUGINS": str(tmp_path / "full.py")}
    worker = Worker(Slot(0, environment), tmp_path / "logs")
    try:
        (tmp_path / "is_full").touch()
        full = worker.train(run.name, run.arguments(tmp_path))
        assert (full["error"], full["out_of_memory"], full["is_fresh"]) == (
            "OutOfMemoryError: CUDA out of memory.",
            True,
            True,
        )
        assert worker._process is None
        (tmp_path / "is_full").unlink()
        first, second = (worker.train(run.name, run.arguments(tmp_path)) for _ in range(2))
        assert (first["error"], first["out_of_memory"], first["is_fresh"]) == (None, False, True)
        assert second["is_fresh"] is False
    finally:
        worker.close()


def test_the_runs_of_the_first_grid_come_first_and_a_manifest_says_nothing_of_it(tmp_path: Path) -> None:
    grids = [
        {"size": {"small": {"model.name": "vit_pico"}}, "seed": [0, 1]},
        {"size": {"large": {"model.name": "vit_nano", "budget_samples": 8 * BATCH}}},
        {"size": {"small": {"model.name": "vit_pico", "budget_samples": 4 * BATCH}}, "seed": [2]},
    ]
    runs = expand({**WHOLE, "data.shards": "x"}, grids)
    queue = RunQueue(runs, tmp_path, lambda run: False, lambda run, why: None)
    order = []
    before: PlannedRun | None = None
    while (found := queue.take(before)) is not None:
        before = found[0]
        order.append(before.name)
    # What the place has compiled (small) would come next but for the order of the grids.
    assert order == ["small-seed0", "small-seed1", "large", "small-seed2"]
    keep_manifest(tmp_path, runs)
    # Grids may be put in another order later.
    keep_manifest(tmp_path, expand({**WHOLE, "data.shards": "x"}, grids[::-1]))
    assert {run.grid for run in read_manifest(tmp_path).values()} == {0}
    assert yaml.safe_load((tmp_path / "sweep.json").read_text())["large"].keys() == {"place", "options"}
