"""Training: LightningModule, callbacks, checkpoints and the command; time is counted in samples seen, everywhere.

The package can be called: `clip_la.train(out=..., budget_samples=...)` is `clip_la.train.cli.train`. A function of that
name would be gone once any module of this package is imported, which puts the package in its place.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_la.train.run import Run


class _Callable(ModuleType):
    def __call__(self, **options: Any) -> "Run":
        """As clip_la.train.cli.train."""
        from clip_la.train.cli import train

        return train(**options)


sys.modules[__name__].__class__ = _Callable
