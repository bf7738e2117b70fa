"""The finished units of an unfinished evaluation, kept on disk until all are done."""

import os
import shutil
import sys
import uuid
from pathlib import Path

from clip_la.errors import UserError
from clip_la.zeroshot import predictions
from clip_la.zeroshot.predictions import Predictions


class Parts:
    """A folder of parts, written by any rank under names of its own."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def save(self, part: Predictions) -> None:
        """Keeps one more part."""
        part.save(self.folder / f"{uuid.uuid4().hex}.npz")

    def load(self) -> list[Predictions]:
        """All parts that can be read; a damaged one is passed over with a line on stderr."""
        found = []
        for path in sorted(self.folder.glob("*.npz")):
            try:
                found.append(predictions.load(path))
            except UserError as error:
                print(f"{error}; its pictures are evaluated again", file=sys.stderr)
        return found

    def clear(self) -> None:
        """Removes the folder, once the evaluation is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)
