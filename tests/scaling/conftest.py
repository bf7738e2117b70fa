"""Result files made of a known law, for the scaling tests."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

REFERENCE_LINE: dict[str, Any] = {
    "run_id": "run0",
    "seed": 0,
    "model": "vit_nano",
    "attention": "softmax",
    "flops_per_sample": 1.5e7,
    "samples_seen": 40000,
    "budget_samples": 40000,
    "schedule": "cosine",
    "batch_size": 128,
    "train_data": "starter",
    "task": "zeroshot_classification",
    "dataset": "renditions",
    "num_samples": 380,
    "num_classes": 380,
    "names_hash": "n0",
    "templates_hash": "t0",
}


@pytest.fixture
def result_line() -> Callable[..., dict[str, Any]]:
    """A result line with top-1 `value` and any other fields replaced."""

    def make(value: float, **fields: Any) -> dict[str, Any]:
        metrics = {"top1": {"value": value, "low": value - 0.02, "high": value + 0.03}}
        return {**REFERENCE_LINE, "metrics": metrics, **fields}

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines (dicts as JSON, strings as they are) to a file and returns its path."""

    def write(lines: Iterable[dict[str, Any] | str], name: str = "results.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


@pytest.fixture
def two_laws(result_line: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines exactly on E = 3 C^-0.08 (softmax) and E = 4 C^-0.09 (linear), twelve paired runs each."""
    laws = {"softmax": (3.0, -0.08), "linear": (4.0, -0.09)}
    lines = []
    for attention, (beta, alpha) in laws.items():
        for size, flops in (("vit_nano", 1.5e7), ("vit_micro", 7e7), ("vit_mini", 2e8)):
            for seed in (0, 1):
                for samples in (30011, 250007):
                    error = beta * (flops * samples) ** alpha
                    fields = {"model": size, "attention": attention, "seed": seed, "flops_per_sample": flops}
                    run = {"run_id": f"{size}-{attention}-{seed}-{samples}", "samples_seen": samples}
                    lines.append(result_line(1 - error, **fields, **run, budget_samples=samples))
    return lines
