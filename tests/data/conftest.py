"""Small shards of real pictures for the stream's tests."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clip_la.data.shards.reader import ShardWriter

MakeShards = Callable[..., list[str]]


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """`make_shards(3, 10, name=..., spoil=...)` writes 3 shards of 10 samples, numbered on, and returns their paths."""

    def make(num_shards: int, per_shard: int, *, name: str = "shards", spoil: dict[int, dict[str, Any]] | None = None):
        paths = []
        for shard in range(num_shards):
            path = tmp_path / name / f"{shard:05d}.tar"
            with ShardWriter(path) as writer:
                for i in range(shard * per_shard, (shard + 1) * per_shard):
                    sample = {"__key__": f"{name}{i:04d}", "png": png(i), "txt": f"thing number {i}"}
                    sample.update((spoil or {}).get(i, {}))
                    writer.write({part: value for part, value in sample.items() if value is not None})
            paths.append(str(path))
        return paths

    return make


def png(number: int) -> bytes:
    """A small picture of one colour that tells its number."""
    data = BytesIO()
    Image.new("RGB", (14 + number % 5, 15), (number % 256, number // 256, 77)).save(data, "PNG")
    return data.getvalue()
