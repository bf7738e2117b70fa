"""One, two and three processes give the same digits, and none waits for one that failed."""

import multiprocessing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from clip_la import distributed as ranks
from clip_la.errors import UserError
from clip_la.models.clip import CLIP
from clip_la.zeroshot.datasets.records import Content
from clip_la.zeroshot.datasets.shards import open_caption_shards
from clip_la.zeroshot.labels import prompts
from clip_la.zeroshot.model.eval_model import of_model
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.runner.rows import Predictions
from clip_la.zeroshot.tasks.classification import evaluate_zeroshot
from clip_la.zeroshot.tasks.retrieval import Retrieval

from .conftest import write_shards

TEMPLATES = prompts.PromptSet("two", ("a photo of a {c}.", "the {c}"))
ARRAYS = tuple(each.name for each in fields(Predictions) if each.name != "skipped")
# The longest a job may take before the test calls it hung; it takes seconds.
LIMIT_S = 120


def _process(work: Callable[[int], None], rank: int, world_size: int, store: Path) -> None:
    # Forked children must not meet the parent's OpenMP threads again.
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    work(rank)
    ranks.leave()


def run_job(work: Callable[[int], None], world_size: int, folder: Path) -> None:
    """Runs `work(rank)` in `world_size` processes that form a job."""
    context = multiprocessing.get_context("fork")
    store = folder / f"store{world_size}"
    processes = [context.Process(target=_process, args=(work, rank, world_size, store)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_S)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, "a process hung"
    assert [process.exitcode for process in processes] == [0] * world_size


def test_any_number_of_ranks_gives_the_same_digits(tiny_model: CLIP, tmp_path: Path, monkeypatch):
    from clip_la.zeroshot.model import classifier

    # Several chunks of classes, so that ranks share the classifier too.
    monkeypatch.setattr(classifier, "PROMPTS_PER_CHUNK", 3)
    write_shards(tmp_path / "things", sizes=(9, 4))

    def work(rank: int) -> None:
        found = evaluate_zeroshot(
            tiny_model,
            str(tmp_path / "things"),
            templates=TEMPLATES,
            batch_size=2,
            state=tmp_path / "state",
            progress=False,
        )
        found.predictions.save(tmp_path / f"{ranks.world_size()}-{rank}.npz")
        (tmp_path / f"{ranks.world_size()}-{rank}.txt").write_text(repr(found.line["metrics"]))

    for world_size in (1, 2, 3):
        run_job(work, world_size, tmp_path)
    expected = Predictions.load(tmp_path / "1-0.npz")
    assert len(expected) == 13
    for world_size, rank in ((2, 0), (2, 1), (3, 0), (3, 1), (3, 2)):
        found = Predictions.load(tmp_path / f"{world_size}-{rank}.npz")
        for name in ARRAYS:
            assert np.array_equal(getattr(found, name), getattr(expected, name)), (world_size, rank, name)
        assert (tmp_path / f"{world_size}-{rank}.txt").read_text() == (tmp_path / "1-0.txt").read_text()


def test_retrieval_on_two_ranks(tiny_model: CLIP, tmp_path: Path, monkeypatch):
    from clip_la.zeroshot.tasks import retrieval

    monkeypatch.setattr(retrieval, "TEXTS_PER_CHUNK", 5)
    monkeypatch.setattr(retrieval, "QUERIES_PER_CHUNK", 4)
    write_shards(tmp_path / "things", sizes=(6, 3))
    from clip_la.data.shards.reader import ShardWriter

    from .conftest import picture

    for shard, numbers in enumerate((range(6), range(6, 11))):
        with ShardWriter(tmp_path / f"{shard}.tar") as writer:
            for n in numbers:
                writer.write({"__key__": f"k{n}", ".png": picture(n), ".txt": f"thing {n}\nsome {n * 3} of it"})

    def work(rank: int) -> None:
        test_set = open_caption_shards(str(tmp_path / "{0,1}.tar"), "x")
        line = Retrieval(test_set).run(of_model(tiny_model), EvalSettings(batch_size=2, progress=False)).line
        (tmp_path / f"{ranks.world_size()}-{rank}.txt").write_text(repr((line["metrics"], line["num_captions"])))

    for world_size in (1, 2):
        run_job(work, world_size, tmp_path)
    texts = {path.read_text() for path in tmp_path.glob("?-?.txt")}
    assert len(texts) == 1
    assert ", 22)" in texts.pop()


def test_ranks_share_the_look_at_the_data_and_agree(tmp_path: Path):
    write_shards(tmp_path / "things", sizes=(3, 2, 4))
    shards = [str(tmp_path / "things" / "test" / f"{number}.tar") for number in range(3)]

    def work(rank: int) -> None:
        found = [Content(shards, "fact")(), Content([*shards, "pipe:cat nothing"], None)()]
        (tmp_path / f"{ranks.world_size()}-{rank}.txt").write_text("\n".join(found))

    for world_size in (1, 2, 4):
        run_job(work, world_size, tmp_path)
    found = {path.stem: path.read_text().splitlines() for path in tmp_path.glob("?-?.txt")}
    assert len(found) == 7
    assert len({known for known, _ in found.values()}) == 1
    # What nobody knows is the same within a job, and never again.
    assert len({unknown for _, unknown in found.values()}) == 3
    assert found["4-0"][1] == found["4-3"][1]


def test_error_on_one_rank_reaches_all(tmp_path: Path):
    def fail(rank: int) -> int:
        if rank == 1:
            raise UserError("shard 7 is not there")
        return rank

    def work(rank: int) -> None:
        with pytest.raises(UserError, match="shard 7 is not there"):
            ranks.all_gather(lambda: fail(rank))

    run_job(work, 3, tmp_path)


def test_unexpected_error_on_one_rank_reaches_all(tmp_path: Path):
    def work(rank: int) -> None:
        with pytest.raises(ZeroDivisionError if rank == 0 else RuntimeError, match="division"):
            ranks.all_gather(lambda: 1 // rank)

    run_job(work, 2, tmp_path)
