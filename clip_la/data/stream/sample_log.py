"""A record of every sample trained on or skipped, one JSON line each, as `clip-la data read` writes them."""

from pathlib import Path
from typing import Any

from clip_la.json_text import json_text


class SampleLog:
    """Appends to `keys-rank<N>.jsonl` in a folder: shard, key, outcome ("ok" or "skipped"), reason, worker, position.

    Worker and position number the batches. What was trained on after the last checkpoint before a kill is trained on
    again when the run is resumed, and stands there twice, under the same numbers.
    """

    def __init__(self, folder: str, rank: int) -> None:
        self._path = Path(folder) / f"keys-rank{rank}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, batch: dict[str, Any]) -> None:
        """Appends the samples of one batch, those skipped before it first, in one write."""
        worker, position, _ = batch["cursor"]
        used = [(shard, key, None) for shard, key in zip(batch["shards"], batch["keys"], strict=True)]
        skipped = [(shard, key, reason) for reason, shard, key in batch["problems"]]
        lines = []
        for shard, key, reason in [*skipped, *used]:
            outcome = "skipped" if reason else "ok"
            line = {"shard": shard, "key": key, "outcome": outcome, "reason": reason}
            lines.append(json_text({**line, "worker": worker, "position": position}) + "\n")
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("".join(lines))
