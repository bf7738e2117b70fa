"""Which run comes next: trunks, their branches, and runs that find layers or data of the one before."""

from pathlib import Path

from clip_la.sweep.plan import expand
from clip_la.sweep.schedule import RunQueue

from .runs import BATCH, BUDGETS, OPTIONS, touch_checkpoint


def test_trunks_come_first_and_branches_as_soon_as_their_checkpoint_is_there(tmp_path: Path) -> None:
    sizes = {"small": {"model.name": "vit_pico"}, "large": {"model.name": "vit_nano"}}
    runs = expand({**OPTIONS, **BUDGETS}, {"size": sizes})
    failed: list[str] = []
    schedule = RunQueue(runs, tmp_path, lambda run: False, lambda run, why: failed.append(f"{run.name}: {why}"))

    def taken() -> tuple[str, Path | None]:
        found = schedule.take()
        assert found is not None
        return found[0].name, found[1]

    assert taken() == ("large-trunk", None)
    assert taken() == ("small-trunk", None)
    checkpoint = touch_checkpoint(tmp_path, "large-trunk", 96)
    # The trunk is at work still.
    assert taken() == ("large-n128", checkpoint)
    last = touch_checkpoint(tmp_path, "large-trunk", 192)
    by_name = {run.name: run for run in runs}
    schedule.end(by_name["large-trunk"], is_failed=False)
    schedule.end(by_name["small-trunk"], is_failed=True)
    assert taken() == ("large-n256", last)
    assert schedule.take() is None
    assert sorted(failed) == [f"small-n{budget}: its trunk failed: see small-trunk" for budget in (128, 256)]


def test_a_place_goes_on_with_the_layers_that_it_has_compiled(tmp_path: Path) -> None:
    sizes = {"small": {"model.name": "vit_pico"}, "large": {"model.name": "vit_nano"}}
    runs = expand({**OPTIONS, **BUDGETS}, {"size": sizes, "seed": [0, 1]})
    by_name = {run.name: run for run in runs}
    for run in runs:
        if run.is_trunk:
            for branch in (each for each in runs if each.trunk == run.name):
                touch_checkpoint(tmp_path, run.name, branch.leaves_at)
    schedule = RunQueue(runs, tmp_path, lambda run: False, lambda run, why: None)

    def taken(before: str | None) -> str:
        found = schedule.take(by_name[before] if before else None)
        assert found is not None
        schedule.end(found[0], is_failed=False)
        return found[0].name

    assert taken(None) == "large-seed0-n256"
    assert taken("small-seed0-trunk") == "small-seed0-n256"
    assert taken("small-seed0-n256") == "small-seed1-n256"
    assert taken("large-seed1-trunk") == "large-seed1-n256"


def test_a_place_goes_on_with_the_data_that_it_has_decoded(tmp_path: Path) -> None:
    # By length alone the runs would change the crops, and with them the pool, each time.
    crops = {"a": {"data.min_crop_area": 0.5}, "b": {"data.min_crop_area": 0.9}}
    lengths = {"long": {"budget_samples": 8 * BATCH}, "short": {"budget_samples": 4 * BATCH}}
    runs = expand({**OPTIONS, "data.shards": "x"}, {"crop": crops, "length": lengths})
    schedule = RunQueue(runs, tmp_path, lambda run: False, lambda run, why: None)
    before, names = None, []
    while (found := schedule.take(before)) is not None:
        before = found[0]
        schedule.end(before, is_failed=False)
        names.append(before.name)
    assert names == ["a-long", "a-short", "b-long", "b-short"]


def test_a_trunk_is_trained_again_only_for_branches_that_lack_their_checkpoint(tmp_path: Path) -> None:
    runs = expand({**OPTIONS, **BUDGETS}, {"seed": [0]})

    def waiting(*finished: str) -> list[str]:
        schedule = RunQueue(runs, tmp_path, lambda run: run.name in finished, lambda run, why: None)
        return [run.name for run in schedule.waiting]

    assert waiting() == ["seed0-trunk", "seed0-n256", "seed0-n128"]
    touch_checkpoint(tmp_path, "seed0-trunk", 192)
    assert waiting("seed0-n128") == ["seed0-n256"]
    assert waiting() == ["seed0-trunk", "seed0-n256", "seed0-n128"]
    assert waiting("seed0-n128", "seed0-n256") == []
    # A branch that was stopped has a checkpoint of its own.
    touch_checkpoint(tmp_path, "seed0-n128", 100)
    assert waiting() == ["seed0-n256", "seed0-n128"]
