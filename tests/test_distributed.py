"""Membership of a job ends with the block that began it, and never a caller's own."""

import pytest
import torch.distributed as dist

from clip_la import distributed as ranks


@pytest.fixture
def no_job(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield
    ranks.leave()


def test_without_a_job_nothing_is_joined(no_job):
    with ranks.membership() as local_rank:
        assert (local_rank, ranks.joined(), ranks.world_size()) == (0, False, 1)


def test_a_callers_own_job_goes_on(no_job, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    with ranks.membership():
        assert ranks.joined()
    assert ranks.joined()


def test_a_job_that_was_joined_for_the_block_is_left_also_after_an_error(no_job, monkeypatch, tmp_path):
    def join() -> int:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
        return 0

    monkeypatch.setattr(ranks, "join_from_environment", join)
    seen: list[bool] = []

    def fail() -> None:
        with ranks.membership():
            seen.append(ranks.joined())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [True]
    assert not ranks.joined()
