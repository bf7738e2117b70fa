"""The data module inside a real trainer: positions in checkpoints, resuming, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from clip_la.data.datamodule import ShardDataModule, StreamPosition
from clip_la.data.options import StreamOptions
from clip_la.errors import UserError

SIZE = 8


class Recorder(pl.LightningModule):
    """Trains nothing worth having and remembers the keys it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.keys = []

    def training_step(self, batch, index):
        self.keys.append(batch["keys"])
        return self.weight * batch["image"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, steps, data, ckpt_path=None):
    task = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        callbacks=[StreamPosition()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return task.keys


def data_of(urls, **options):
    seed = options.pop("seed", 0)
    options = {"shards": urls, "batch_size": 4, "workers": 0, "bad_share_limit": 1.0, **options}
    return ShardDataModule(StreamOptions(**options), image_size=SIZE, seed=seed)


def test_a_cache_folder_that_cannot_be_written_is_named_with_its_option(make_shards, tmp_path):
    (tmp_path / "file").write_text("")
    # In /proc nobody, not even root, makes a folder.
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/kept")):
        with pytest.raises(UserError, match=f"^local_cache {folder}: .*; name a folder that can be written to$"):
            data_of(make_shards(1, 2), local_cache=str(folder))
    data_of(make_shards(1, 2), local_cache=str(tmp_path / "new" / "folder"))
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_resumed_fit_sees_what_an_uninterrupted_one_sees(make_shards, tmp_path):
    urls = make_shards(3, 10, spoil={4: {"txt": ""}, 17: {"png": b""}})
    whole = data_of(urls)
    expected = fit(tmp_path, 12, whole)
    first, second = data_of(urls), data_of(urls)
    got = fit(tmp_path, 5, first) + fit(tmp_path, 12, second, tmp_path / "5.ckpt")
    assert got == expected
    assert second.skipped == whole.skipped
    assert whole.skipped_text().startswith(("empty caption", "image empty"))
    # A position is plain data: any checkpoint reader may be strict.
    torch.load(tmp_path / "12.ckpt", weights_only=True)


# The second is the option's earlier name.
@pytest.mark.parametrize("option", ["sample_log", "audit"])
def test_the_log_names_every_sample_used_or_skipped(make_shards, tmp_path, option):
    urls = make_shards(3, 10, spoil={4: {"txt": ""}, 17: {"png": b""}})
    keys = fit(tmp_path, 9, data_of(urls, **{option: str(tmp_path / "log")}))
    lines = [json.loads(line) for line in (tmp_path / "log" / "keys-rank0.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines if line["outcome"] == "ok"] == [key for batch in keys for key in batch]
    skipped = {line["key"]: line["reason"] for line in lines if line["outcome"] == "skipped"}
    assert skipped == {"shards0004": "empty caption", "shards0017": "image empty"}
    assert [line["position"] for line in lines if line["outcome"] == "ok"] == [4 * (i // 4 + 1) for i in range(36)]
    assert all(line["shard"] in urls for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0, now 1"),
        ({"block_shards": 2}, "block_shards 1, now 2"),
        ({"workers": 2}, "workers 1, now 2"),
        ({"cache": "memory"}, "in_memory False, now True"),
        ({"replacement": True}, "replacement False, now True"),
        ({"shards": slice(0, 2)}, "shards 3 shards.*, now 2 shards"),
    ],
)
def test_a_position_of_another_layout_is_refused(make_shards, tmp_path, change, message):
    urls = make_shards(3, 10)
    fit(tmp_path, 2, data_of(urls))
    change = {**change, "shards": urls[change["shards"]]} if "shards" in change else {"shards": urls, **change}
    with pytest.raises(UserError, match=f"{message}.*changed_layout"):
        fit(tmp_path, 4, data_of(change.pop("shards"), **change), tmp_path / "2.ckpt")


def test_reshuffling_goes_on_in_another_order_and_resumes_exactly_again(make_shards, tmp_path):
    urls = make_shards(3, 10)
    old = fit(tmp_path, 4, data_of(urls))
    options = {"block_shards": 2, "changed_layout": "reshuffle"}
    expected = fit(tmp_path, 12, data_of(urls, **options), tmp_path / "4.ckpt")
    got = fit(tmp_path, 7, data_of(urls, **options), tmp_path / "4.ckpt")
    got += fit(tmp_path, 12, data_of(urls, **options), tmp_path / "7.ckpt")
    assert got == expected
    assert expected[:4] != old
    assert expected[:4] != fit(tmp_path, 4, data_of(urls, block_shards=2))


def test_moved_shards_are_the_same_shards(make_shards, tmp_path):
    here, there = make_shards(2, 10), make_shards(2, 10, name="moved")
    fit(tmp_path, 3, data_of(here))
    fit(tmp_path, 4, data_of(there), tmp_path / "3.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0, 2.0]}, "weights has 2 numbers for 1 entries"),
        ({"weights": [0.0]}, "must be positive"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"workers": -1}, "workers -1"),
        ({"cache_gb": 0.0}, "cache_gb 0.0 must be positive"),
        ({"min_crop_area": 0.0}, "min_crop_area 0.0 must lie in"),
        ({"jitter": 1.0}, "jitter 1.0 must lie in"),
        ({"caption_fields": ()}, "caption_fields is empty"),
        ({"caption_weights": (1.0, 2.0)}, "caption_weights has 2 numbers for 1"),
        ({"caption_weights": (-1.0,)}, "must not be negative"),
        ({"tokenizer": "clap"}, "unknown tokenizer 'clap'; did you mean clip"),
    ],
)
def test_wrong_options_are_named(make_shards, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        fit(tmp_path, 1, data_of(make_shards(1, 5)[0], **options))


def test_killed_runs_resume_to_the_sample():
    script = Path(__file__).parents[2] / "scripts" / "kill_test.py"
    run = subprocess.run([sys.executable, script, "--kills", "2"], capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr + run.stdout
    assert "2 kills" in run.stdout
