"""Runs as jobs: through submitit's own executor for one machine, and through commands that stand in for SLURM's."""

import os
import stat
import sys
from pathlib import Path

import pytest
import yaml

from clip_la.cli import main
from clip_la.data.corpora.scenes import build_scenes
from clip_la.errors import UserError
from clip_la.sweep.plan import expand
from clip_la.sweep.runner import Sweep
from clip_la.sweep.slurm import JobPlace, job_places
from clip_la.sweep.state import last_row

pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")

BATCH = 32
OPTIONS = {
    "model.name": "vit_pico",
    "data.batch_size": BATCH,
    "data.workers": 0,
    "budget_samples": BATCH,
    "tensorboard": False,
    "accelerator": "cpu",
}
# Stands in for a cluster: a job is a process of this machine, `sacct` knows which are at work.
SBATCH = """#!/bin/bash
id=$((1000 + $(ls {state} | wc -l)))
cp "${{@: -1}}" {state}/$id
SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 \
    setsid bash "${{@: -1}}" > {state}/../$id.log 2>&1 &
echo $! > {state}/../$id.pid
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do
    case "$1" in --output|--error) shift;; esac
    shift
done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for job in $(ls {state}); do
    kill -0 $(cat {state}/../$job.pid) 2>/dev/null && echo "$job|RUNNING|here" || echo "$job|COMPLETED|here"
done
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the batch files of the submitted jobs lie, each under its id."""
    commands, state = tmp_path / "bin", tmp_path / "slurm/jobs"
    commands.mkdir()
    state.mkdir(parents=True)
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", "#!/bin/bash\n")):
        (commands / name).write_text(text.format(state=state) if "{state}" in text else text)
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return state


def test_a_sweep_trains_in_jobs(tmp_path: Path) -> None:
    build_scenes(tmp_path / "scenes", pairs=32, size_px=32, quiet=True)
    runs = expand({**OPTIONS, "data.shards": str(tmp_path / "scenes/train")}, {"seed": [0]})
    places = [JobPlace(tmp_path / "jobs", {"timeout_min": 5}, cluster="local", poll_s=0.1)]
    said: list[str] = []
    assert Sweep(runs, tmp_path / "out", places, num_evaluations=lambda run: 0, report=said.append).run() == []
    assert last_row(tmp_path / "out/runs/seed0")["samples_seen"] == "32"
    assert said[-1].startswith("[1/1] seed0: loss ")
    assert not list((tmp_path / "jobs").glob("*.job"))


def test_a_job_is_asked_of_slurm_and_found_again_by_a_later_sweep(cluster: Path, tmp_path: Path) -> None:
    (place,) = job_places(tmp_path, 1, ["partition=gpu", "cpus_per_task=3", "signal_delay_s=60"])
    place._poll_s = 0.1
    # A sweep that was killed left its job at work: the next sweep waits for that one, and submits none.
    note = tmp_path / "logs/slurm/a.job"
    left = place._executor.submit(dict, error="left", seconds=1.0)
    note.write_text(left.job_id)
    assert not left.done()
    assert place.train("a", ["--no_such_option=1"]) == {"error": "left", "seconds": 1.0}
    assert [path.name for path in cluster.iterdir()] == ["1000"]
    assert not note.exists()
    asked = (cluster / "1000").read_text()
    for line in ("--partition=gpu", "--cpus-per-task=3", "--gpus-per-node=1", "--time=720"):
        assert f"#SBATCH {line}\n" in asked
    # One that has ended may have been stopped half-way: it is submitted again.
    note.write_text(left.job_id)
    assert "unknown option --no_such_option" in place.train("a", ["--no_such_option=1"])["error"]
    assert sorted(path.name for path in cluster.iterdir()) == ["1000", "1001"]


def test_what_is_wrong_with_a_launcher_is_one_line(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--slurm takes KEY=VALUE, not 'x'"):
        job_places(tmp_path, 1, ["x"])
    with pytest.raises(UserError, match=r"--slurm: .*partitionn") as error:
        job_places(tmp_path, 1, ["partitionn=gpu"])
    assert "\n" not in str(error.value)
    plan = tmp_path / "s.yaml"
    plan.write_text(yaml.safe_dump({"options": {**OPTIONS, "data.shards": "x"}, "grid": {"seed": [0]}}))
    command = ["scaling", "sweep", str(plan), "--out", str(tmp_path / "out"), "--gpus", ""]
    for more, said in (
        (["--launcher", "slrum"], "did you mean slurm"),
        (["--slurm", "partition=gpu"], "belong to --launcher slurm"),
        (["--launcher", "slurm", "--jobs", "0"], "a number from 1"),
        (["--keep", "nobe"], "did you mean none"),
        (["--rates", str(tmp_path / "none")], "no such folder"),
    ):
        assert main([*command, *more]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="srun"):
        job_places(tmp_path, 1, [])
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([*command, "--launcher", "slurm"]) == 2
    assert "pip install 'clip_la[slurm]'" in capsys.readouterr().err
    assert list(cluster.iterdir()) == []
