"""Options of small runs, several budgets for them, and what runs leave in a sweep's folder."""

from pathlib import Path

BATCH = 32
OPTIONS = {
    "model.name": "vit_pico",
    "model.attention": "softmax",
    "model.warmup_samples": BATCH,
    "data.batch_size": BATCH,
    "data.workers": 0,
    "data.cache": "memory",
    "log_every_samples": BATCH,
    "tensorboard": False,
    "accelerator": "cpu",
}
BUDGETS = {"budgets": [8 * BATCH, 4 * BATCH], "cooldown_share": 0.25}


def touch_checkpoint(out: Path, run: str, samples: int) -> Path:
    """An empty checkpoint, where a run of the sweep in `out` would have saved one."""
    path = out / "runs" / run / "checkpoints" / f"samples={samples:09d}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def log_samples(out: Path, run: str, samples: int) -> None:
    """The table of a run that has seen so many samples, at 10 pairs/s."""
    path = out / "runs" / run / "metrics.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"samples_seen,loss,pairs_per_s,data_wait_share,train_s\n{samples},1.0,10.0,0.0,{samples / 10}\n")
