"""Evaluation while training: at the right moments, with the right figures, and without touching the training."""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from clip_la import results
from clip_la.data.images.transforms import eval_transform
from clip_la.data.text.tokenizer import caption_ids, get_tokenizer
from clip_la.train.options import ModelOptions
from clip_la.train.task import ContrastiveTask
from clip_la.train.zeroshot_callback import ZeroShotEvaluation
from clip_la.zeroshot.datasets.find import open_dataset
from clip_la.zeroshot.labels import prompts
from clip_la.zeroshot.runner.loop import EvalSettings
from clip_la.zeroshot.tasks.classification import Classification, evaluate_zeroshot

from .conftest import NAMES, picture

TEMPLATES = prompts.PromptSet("one", ("a {c}",))
BATCH = 4
HOW = EvalSettings(batch_size=5)


class Pairs(Dataset):
    """Ready batches, the same each time."""

    def __init__(self, image_size: int, context_length: int) -> None:
        transform, tokenize = eval_transform(image_size), get_tokenizer("clip", context_length)
        self.batches = []
        for step in range(5):
            captions = [f"{NAMES[(step + i) % 6]} {i}" for i in range(BATCH)]
            images = torch.stack([transform(picture(step * BATCH + i)) for i in range(BATCH)])
            self.batches.append({"image": images, "tokens": tokenize(captions), "caption_id": caption_ids(captions)})

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.batches[index]


def train(callbacks: list[pl.Callback], folder: Path) -> tuple[ContrastiveTask, torch.Tensor]:
    task = ContrastiveTask(ModelOptions(name="vit_pico", lr=1e-3), batch_size=BATCH, budget_samples=5 * BATCH, seed=1)
    torch.manual_seed(5)
    trainer = pl.Trainer(
        max_steps=5,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    spec = task.model.spec
    trainer.fit(task, DataLoader(Pairs(spec.image_size, spec.context_length), batch_size=None))
    return task, torch.rand(3)


def weights(task: ContrastiveTask) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in task.parameters()]).numpy()


def test_evaluation_at_given_samples(shard_folder: Path, tmp_path: Path):
    job = Classification(open_dataset(str(shard_folder)), TEMPLATES)
    origin = {"run_id": "r", "seed": 1, "train_data": "pairs"}
    out = tmp_path / "run" / "results.jsonl"

    def make() -> ZeroShotEvaluation:
        # 7 samples are reached after two batches of 4; the end is always evaluated.
        return ZeroShotEvaluation([job], at_samples=(7,), out=out, origin=origin, how=HOW)

    plain, next_random = train([], tmp_path)
    task, next_random_after = train([callback := make()], tmp_path)
    assert np.array_equal(weights(plain), weights(task))
    assert torch.equal(next_random, next_random_after)
    lines = list(results.read(out))
    assert [line["samples_seen"] for line in lines] == [8, 20]
    assert (lines[1]["run_id"], lines[1]["schedule"], lines[1]["budget_samples"]) == ("r", "cosine", 20)
    expected = evaluate_zeroshot(task.model, str(shard_folder), templates=TEMPLATES, batch_size=5, progress=False)
    assert lines[1]["metrics"] == expected.line["metrics"]
    assert np.array_equal(callback.latest[0].predictions.scores, expected.predictions.scores)
    assert lines[0]["evaluation"] != lines[1]["evaluation"]

    # The same run again, as after a resume: what is there is not made again.
    train([again := make()], tmp_path)
    assert len(list(results.read(out))) == 2
    assert again.latest == []
