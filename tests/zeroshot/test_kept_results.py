"""What is kept is found again only for the same data, classes, prompts and settings, and under the name asked for.

Each test changes one thing alone and keeps names, sizes and, where it can, times: a fresh evaluation into another file
is the reference.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clip_la import results
from clip_la.errors import UserError
from clip_la.models.clip import CLIP
from clip_la.zeroshot import suite
from clip_la.zeroshot.model.classifier import ClassifierCache
from clip_la.zeroshot.model.eval_model import EvalModel, of_model
from clip_la.zeroshot.report import tables
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.suite import SuiteEntry, prepare
from clip_la.zeroshot.tasks import classification as evaluate
from clip_la.zeroshot.tasks.task import Evaluation

from .changed_sets import CLASSIFIED, COLOURS, folders, keep_time, numbered_shards, parquet, replaced_picture, shards

HOW = EvalSettings(batch_size=4, progress=False)


@pytest.fixture
def run(tiny_model: CLIP, tmp_path: Path) -> Callable[..., Evaluation]:
    """Evaluates on an entry as the command does; what it says goes to `said`."""
    said: list[str] = []
    how = replace(HOW, cache=ClassifierCache(tmp_path / "cache"))

    def evaluate_entry(
        entry: SuiteEntry, out: str = "out.jsonl", eval_model: EvalModel | None = None, **more
    ) -> Evaluation:
        said.clear()
        eval_model = eval_model or of_model(tiny_model)
        jobs = [prepare(entry)]
        (found,) = suite.evaluate_tasks(eval_model, jobs, more.get("how", how), tmp_path / out, report=said.append)
        return found

    evaluate_entry.said = said  # type: ignore[attr-defined]
    return evaluate_entry


def figures(line: dict) -> tuple:
    return line["metrics"], line["names_hash"], line.get("templates_hash")


def lines_in(path: Path) -> list[dict]:
    return list(results.read(path))


@pytest.mark.parametrize("change", CLASSIFIED, ids=lambda change: change.__name__)
def test_changed_data_are_evaluated_as_they_are(run, tmp_path: Path, change: Callable[[Path], None]):
    data = tmp_path / "set"
    CLASSIFIED[change](data)
    entry = SuiteEntry(str(data))
    first = run(entry)
    assert run(entry).line == first.line
    assert run.said == [f"tiny on set: already in {tmp_path / 'out.jsonl'}"]
    change(data)
    second, fresh = run(entry), run(entry, "fresh/out.jsonl")
    assert second.line["evaluation"] != first.line["evaluation"]
    assert figures(second.line) == figures(fresh.line)
    assert (second.predictions.top == fresh.predictions.top).all()
    assert len(lines_in(tmp_path / "out.jsonl")) == 2


def test_json_labels(run, tmp_path: Path):
    data = tmp_path / "set"

    def write(shift: int) -> None:
        shards(data, ".json", lambda i: json.dumps({"class": "abcdef"[(i + shift) % 6]}), classes=False)

    write(1)
    (data / "classnames.txt").write_text("\n".join("abcdef"))
    first = run(SuiteEntry(str(data)))
    keep_time(data / "00000.tar", lambda: write(0))
    assert run(SuiteEntry(str(data))).predictions.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert first.predictions.labels.tolist() == [1, 2, 3, 4, 5, 0]


def test_mended_captions(run, tmp_path: Path):
    data, entry = tmp_path / "set", SuiteEntry(str(tmp_path / "set"), task=results.RETRIEVAL)
    shards(data, ".txt", lambda i: f"picture {(i + 2) % 6} of six", classes=False)
    first = run(entry)
    keep_time(data / "00000.tar", lambda: shards(data, ".txt", lambda i: f"picture {i} of six", classes=False))
    second, fresh = run(entry), run(entry, "fresh/out.jsonl")
    assert second.line["metrics"] == fresh.line["metrics"] != first.line["metrics"]


@pytest.mark.parametrize("which", ["train", "test"])
@pytest.mark.parametrize("task", [results.KNN, results.LINEAR_PROBE])
def test_probes_see_either_set_change(run, tmp_path: Path, which: str, task: str):
    folders(tmp_path / "train")
    folders(tmp_path / "test", shift=1)
    entry = SuiteEntry(str(tmp_path / "test"), task=task, train=str(tmp_path / "train"))
    first = run(entry)
    assert run(entry).line == first.line
    replaced_picture(tmp_path / which)
    second = run(entry)
    assert second.line["evaluation"] != first.line["evaluation"]
    assert second.line["metrics"] == run(entry, "fresh/out.jsonl").line["metrics"]


def test_options_of_a_task_count(run, tmp_path: Path):
    folders(tmp_path / "train")
    folders(tmp_path / "test", shift=1)
    base = SuiteEntry(str(tmp_path / "test"), task=results.KNN, train=str(tmp_path / "train"))
    entries = [base, replace(base, shots=1), replace(base, task=results.LINEAR_PROBE), SuiteEntry(base.data)]
    entries += [SuiteEntry(base.data, templates="name"), SuiteEntry(base.data, classes=str(tmp_path / "few.txt"))]
    (tmp_path / "few.txt").write_text("\n".join([*COLOURS, "grey"]))
    ids = [run(entry).line["evaluation"] for entry in entries]
    ways = (replace(HOW, batch_size=5), replace(HOW, precision="bf16"))
    ids += [run(base, how=how).line["evaluation"] for how in ways]
    assert len(set(ids)) == len(ids)


def test_the_format_of_the_code_counts(run, tmp_path: Path, monkeypatch):
    folders(tmp_path / "train")
    entries = [SuiteEntry(str(tmp_path / "train"))]
    entries += [replace(entries[0], task=results.KNN, train=entries[0].data)]
    before = [run(entry).line["evaluation"] for entry in entries]
    monkeypatch.setattr(results, "FORMAT", -1)
    assert not set(before) & {run(entry).line["evaluation"] for entry in entries}


def test_a_line_never_comes_back_under_another_name_or_path(run, tmp_path: Path, tiny_model: CLIP, monkeypatch):
    numbered_shards(tmp_path / "first" / "set")
    shutil.copytree(tmp_path / "first" / "set", tmp_path / "second" / "set")
    first = run(SuiteEntry(str(tmp_path / "first" / "set")))
    monkeypatch.setattr(evaluate, "classify", None)  # nothing is computed again
    asked = [
        (SuiteEntry(str(tmp_path / "first" / "set"), name="other"), None),
        (SuiteEntry(str(tmp_path / "second" / "set")), None),
        *(
            (
                SuiteEntry(first.line["data"]),
                of_model(tiny_model, checkpoint="copy.ckpt", run_id="r", samples_seen=samples),
            )
            for samples in (7, 8)
        ),
    ]
    (tmp_path / "mine.txt").write_text("a photo of a {c}.")
    asked.append((SuiteEntry(str(tmp_path / "first" / "set"), templates=str(tmp_path / "mine.txt")), None))
    for number, (entry, eval_model) in enumerate(asked, start=2):
        found = run(entry, eval_model=eval_model).line
        assert (found["dataset"], found["data"]) == (entry.name or "set", entry.data)
        assert found["templates"] == ("mine" if entry.templates else "plain")
        assert found["samples_seen"] == (None if eval_model is None else eval_model.origin["samples_seen"])
        assert (found["metrics"], found["evaluation"]) == (first.line["metrics"], first.line["evaluation"])
        assert lines_in(tmp_path / "out.jsonl")[-1] == found
        assert len(lines_in(tmp_path / "out.jsonl")) == number
        assert "the same" in run.said[-1]
        # Asked for once more it is there, however the path is spelt.
        spelt = str(Path(entry.data).parent / "." / ".." / Path(entry.data).parent.name / "set")
        assert run(replace(entry, data=spelt), eval_model=eval_model).line == {**found, "data": spelt}
        assert len(lines_in(tmp_path / "out.jsonl")) == number


def test_a_line_written_while_training_is_that_of_the_file(run, tmp_path: Path, tiny_model: CLIP):
    numbered_shards(tmp_path / "set")
    written = run(SuiteEntry(str(tmp_path / "set")), eval_model=of_model(tiny_model, run_id="r", samples_seen=7))
    later = of_model(tiny_model, checkpoint="run/checkpoints/x.ckpt", run_id="r", samples_seen=7)
    found = run(SuiteEntry(str(tmp_path / "set")), eval_model=later).line
    assert found == {**written.line, "checkpoint": "run/checkpoints/x.ckpt"}
    # And back, where a run is resumed after its checkpoint was evaluated.
    run(SuiteEntry(str(tmp_path / "set")), "other.jsonl", eval_model=later)
    before = of_model(tiny_model, run_id="r", samples_seen=7)
    assert (
        run(SuiteEntry(str(tmp_path / "set")), "other.jsonl", eval_model=before).line
        == lines_in(tmp_path / "other.jsonl")[0]
    )
    assert [len(lines_in(tmp_path / name)) for name in ("out.jsonl", "other.jsonl")] == [1, 1]


def test_data_are_looked_at_when_they_are_evaluated(tiny_model: CLIP, tmp_path: Path):
    # As in a training that runs for days: the jobs were prepared at its start.
    folders(tmp_path / "set")
    jobs = [prepare(SuiteEntry(str(tmp_path / "set")))]
    out = tmp_path / "out.jsonl"
    lines = []
    for change in (lambda data: None, replaced_picture, lambda data: None):
        change(tmp_path / "set")
        (found,) = suite.evaluate_tasks(of_model(tiny_model), jobs, HOW, out, report=lambda text: None)
        lines.append(found.line)
    assert lines[0]["data_hash"] != lines[1]["data_hash"]
    assert lines[2] == lines[1]
    assert lines_in(out) == lines[:2]


def test_data_that_change_meanwhile_are_evaluated_again(run, tmp_path: Path, monkeypatch):
    data, entry = tmp_path / "set", SuiteEntry(str(tmp_path / "set"))
    numbered_shards(data)
    classify = evaluate.classify

    def changing(times: int, first: int):
        def call(*args, **more):
            found = classify(*args, **more)
            if (done := len(calls)) < times:
                shards(data, ".cls", lambda i: str((i + first + done) % 6))
                calls.append(done)
            return found

        calls: list[int] = []
        return call

    monkeypatch.setattr(evaluate, "classify", changing(1, first=1))
    found = run(entry)
    assert run.said[0] == "set changed while it was evaluated; evaluating it as it is now"
    assert found.predictions.labels.tolist() == [1, 2, 3, 4, 5, 0]
    assert lines_in(tmp_path / "out.jsonl") == [found.line]
    monkeypatch.setattr(evaluate, "classify", changing(99, first=2))
    with pytest.raises(UserError, match="set changes while it is evaluated"):
        run(entry, "never.jsonl")
    assert not (tmp_path / "never.jsonl").exists()


def test_a_pipe_is_always_evaluated(run, tmp_path: Path):
    numbered_shards(tmp_path)
    entry = SuiteEntry(f"pipe:cat {tmp_path}/00000.tar", classes=str(tmp_path / "classnames.txt"), name="piped")
    first, second = run(entry), run(entry)
    assert run.said[0] == "piped: its data may have changed unseen, so it is evaluated anew"
    assert first.line["evaluation"] != second.line["evaluation"]
    assert first.line["metrics"] == second.line["metrics"]
    assert len(lines_in(tmp_path / "out.jsonl")) == 2


def test_the_same_content_has_the_same_hash_anywhere(run, tmp_path: Path):
    for make in (numbered_shards, folders, parquet):
        make(tmp_path / "a" / make.__name__)
        shutil.copytree(tmp_path / "a" / make.__name__, tmp_path / "b" / make.__name__)
        both = [prepare(SuiteEntry(str(tmp_path / place / make.__name__))).test_set.fingerprint for place in "ab"]
        assert both[0] == both[1]
        assert "-" not in both[0]


def test_models_are_not_paired_over_different_pictures(run, tmp_path: Path):
    folders(tmp_path / "a")
    folders(tmp_path / "b", shift=1)
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    both = [run(SuiteEntry(str(tmp_path / place), name="same", classes=str(tmp_path / "names.txt"))) for place in "ab"]
    with pytest.raises(UserError, match="nothing to compare"):
        tables.compare_all(both)
