"""JSON files that are whole or absent, and the same for the same content."""

import json
from pathlib import Path
from typing import Any

from clip_la.atomic import atomic_write


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with sorted keys and a final newline, whole or not at all."""
    with atomic_write(path, "w") as stream:
        stream.write(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
