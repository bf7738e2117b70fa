#!/usr/bin/env python
"""Kills a training run with SIGKILL at random moments, resumes it, and checks that nothing is lost or doubled.

Several ranks, several loader workers each, over shards that hold bad samples. The keys that each rank trained on, step
by step, must equal those of a run that was never killed, and so must the weights at the end and the counts of what was
skipped. Exit code 1 says that they do not.

    python scripts/kill_test.py --kills 20
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.plugins.io import TorchCheckpointIO

from clip_la.atomic import atomic_write
from clip_la.data.datamodule import ShardDataModule, StreamPosition
from clip_la.data.options import StreamOptions
from clip_la.data.shards.reader import ShardWriter

NUM_SHARDS, SAMPLES_A_SHARD = 13, 47
BATCH_SIZE, IMAGE_SIZE = 8, 16
STEP_S = 0.01
STEPS_BETWEEN_CHECKPOINTS = 7
STEPS_A_KILL, STEPS_AT_LEAST = 30, 40
LONGEST_LIFE_S = 0.7
SEED = 3


def write_shards(folder: Path, bad_every: int) -> None:
    """Small coloured pictures; one sample in `bad_every` is spoilt, in three ways by turns; one shard is cut short."""
    for shard in range(NUM_SHARDS):
        path = folder / f"{shard:05d}.tar"
        with ShardWriter(path) as writer:
            for i in range(shard * SAMPLES_A_SHARD, (shard + 1) * SAMPLES_A_SHARD):
                picture = BytesIO()
                Image.new("RGB", (20 + i % 7, 18), (i % 256, i // 3 % 256, 99)).save(picture, "PNG")
                sample = {"__key__": f"{i:06d}", "png": picture.getvalue(), "txt": f"thing number {i}"}
                if bad_every and i % bad_every == 0:
                    spoilt: list[dict[str, Any]] = [{"png": picture.getvalue()[:40]}, {"txt": " "}, {"png": b""}]
                    sample.update(spoilt[i // bad_every % 3])
                writer.write(sample)
        if bad_every and shard == 1:
            os.truncate(path, path.stat().st_size * 2 // 3)


def train(folder: Path, rank: int, port: str, args: argparse.Namespace) -> None:
    """One rank of one run, from the newest checkpoint on if there is one."""
    # As torchrun sets them; a run is forked from this process only to spare it the imports.
    environment = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": args.ranks}
    environment |= {"LOCAL_WORLD_SIZE": args.ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()}, TORCHELASTIC_RUN_ID="kill_test")

    class WholeCheckpoints(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            with atomic_write(path) as file:
                torch.save(checkpoint, file)

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(3 * IMAGE_SIZE * IMAGE_SIZE, 4)

        def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
            with open(folder / f"rank{self.global_rank}.jsonl", "a") as file:
                file.write(json.dumps([self.trainer.global_step, batch["keys"]]) + "\n")
            time.sleep(STEP_S)
            return self.model(batch["image"].flatten(1) / 255).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    pl.seed_everything(SEED, verbose=False)
    options = StreamOptions(
        shards=str(folder.parent / "shards"),
        batch_size=BATCH_SIZE * args.ranks,
        workers=args.workers,
        bad_share_limit=1.0,
        block_shards=2,
        cache=args.cache,
        start_method=args.start_method,
    )
    data = ShardDataModule(options, image_size=IMAGE_SIZE, seed=SEED)
    keep_all = pl.callbacks.ModelCheckpoint(
        folder, filename="{step:06d}", every_n_train_steps=STEPS_BETWEEN_CHECKPOINTS, save_top_k=-1
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=args.ranks,
        strategy="ddp",
        max_steps=args.steps,
        max_epochs=-1,
        logger=False,
        callbacks=[StreamPosition(), keep_all],
        plugins=[WholeCheckpoints()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    newest = max(folder.glob("*.ckpt"), default=None)
    trainer.fit(Task(), datamodule=data, ckpt_path=newest, weights_only=True)
    skipped = {"skipped": dict(data.skipped)}
    (folder / f"rank{trainer.global_rank}.end.json").write_text(json.dumps(skipped, sort_keys=True))
    trainer.save_checkpoint(folder / "end.pt", weights_only=True)


def lead(folder: Path, args: argparse.Namespace) -> None:
    """Runs all ranks in a process group of their own, so that they and their workers can be killed at once."""
    os.setpgid(0, 0)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=train, args=(folder, rank, port, args)) for rank in range(args.ranks)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in ranks))


def run_and_kill(folder: Path, args: argparse.Namespace, rng: random.Random) -> int:
    """Runs to the end, killed `args.kills` times on the way; returns how often the kill met a living run."""
    kills = 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=lead, args=(folder, args))
        process.start()
        if kills < args.kills:
            seen = size(folder)
            while size(folder) == seen and process.is_alive():
                time.sleep(0.01)
            time.sleep(rng.uniform(0, LONGEST_LIFE_S))
            if process.is_alive():
                assert process.pid is not None
                os.killpg(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
                steps = len((folder / "rank0.jsonl").read_text().splitlines())
                print(f"kill {kills} of {args.kills} after {steps} logged steps", file=sys.stderr)
                continue
        process.join()
        if process.exitcode:
            sys.exit(f"the run failed:\n{(folder / 'log.txt').read_text()[-3000:]}")
        return kills


def size(folder: Path) -> int:
    """Bytes of the first rank's log of keys."""
    path = folder / "rank0.jsonl"
    return path.stat().st_size if path.exists() else 0


def keys_by_step(path: Path) -> dict[int, list[str]]:
    """What a rank trained on at each step; a step done twice, before a kill and after, must be the same twice."""
    steps: dict[int, list[str]] = {}
    for line in path.read_text().splitlines():
        try:
            step, keys = json.loads(line)
        except ValueError:
            continue  # the line that a kill cut short
        if steps.setdefault(step, keys) != keys:
            sys.exit(f"{path.name}: step {step} had other samples after resuming")
    return steps


def compare(whole: Path, killed: Path, ranks: int) -> int:
    """Exits with a message where the two runs differ; returns the number of samples compared."""
    samples = 0
    for rank in range(ranks):
        expected, got = (keys_by_step(folder / f"rank{rank}.jsonl") for folder in (whole, killed))
        if expected != got:
            step = next(step for step in expected if expected[step] != got.get(step))
            sys.exit(f"rank {rank}: samples differ from step {step} on")
        samples += sum(map(len, expected.values()))
        ends = [(folder / f"rank{rank}.end.json").read_text() for folder in (whole, killed)]
        if ends[0] != ends[1]:
            sys.exit(f"rank {rank}: skipped {ends[0]} uninterrupted, {ends[1]} killed")
    first, second = (torch.load(f / "end.pt", weights_only=True)["state_dict"] for f in (whole, killed))
    if any(not torch.equal(first[name], second[name]) for name in first):
        sys.exit("the weights differ")
    return samples


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--bad-every", type=int, default=9, help="one sample in so many is spoilt; 0 for none")
    parser.add_argument("--start-method", choices=["fork", "spawn", "forkserver"], default="fork")
    parser.add_argument("--cache", choices=["none", "memory"], default="none")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    torch.set_num_threads(1)  # forked children cannot use a thread pool of their parent
    args.steps = STEPS_AT_LEAST + STEPS_A_KILL * args.kills
    root = Path(tempfile.mkdtemp(prefix="kill_test_"))
    for name in ("shards", "whole", "killed"):
        (root / name).mkdir()
    write_shards(root / "shards", args.bad_every)
    # Beside each other: both wait most of the time, for processes to start and for steps that sleep.
    undisturbed = (root / "whole", argparse.Namespace(**{**vars(args), "kills": 0}), random.Random(args.seed))
    whole = multiprocessing.get_context("fork").Process(target=run_and_kill, args=undisturbed)
    whole.start()
    kills = run_and_kill(root / "killed", args, random.Random(args.seed))
    whole.join()
    if whole.exitcode:
        sys.exit("the uninterrupted run failed")
    samples = compare(root / "whole", root / "killed", args.ranks)
    skipped = json.loads((root / "killed" / "rank0.end.json").read_text())["skipped"]
    shutil.rmtree(root)
    if kills < args.kills:
        sys.exit(f"only {kills} of {args.kills} kills met a living run")
    print(
        f"{kills} kills, {samples} samples on {args.ranks} ranks: the same as uninterrupted; rank 0 skipped {skipped}"
    )


if __name__ == "__main__":
    main()
