"""JSON files that are whole or absent, and the same for the same content."""

from pathlib import Path
from typing import Any

from clip_la.atomic import atomic_write
from clip_la.json_text import json_text


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with sorted keys and a final newline, whole or not at all."""
    with atomic_write(path, "w") as stream:
        stream.write(json_text(value, indent=1, sort_keys=True) + "\n")
