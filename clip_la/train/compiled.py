"""torch.compile by regions: one graph serves all equal blocks of a tower, whatever their number.

A tower compiled whole takes as many times longer to compile as it has layers, and again for each caption length. Here
each block is compiled in place: the second block finds the first one's graph. Shapes are static, so captions are padded
to a few lengths (see `lengths`). What was compiled is kept on the disk, for the run's other processes and the next run.
"""

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config
import torch._functorch.config

from clip_la.data.corpora.debian import cache_folder
from clip_la.models.clip import CLIP
from clip_la.train.options import ModelOptions, Unit

# Graphs a function may have: two towers, two kinds of block, each length of a caption, with and without gradients.
MAX_GRAPHS = 64
HASH_DIGITS = 16
# Volta: the oldest that Triton compiles for.
LEAST_CAPABILITY = (7, 0)


def decided(options: ModelOptions, accelerator: str) -> ModelOptions:
    """The options with `compile` true or false in place of auto, on an accelerator that is gpu or cpu.

    A run decides once and writes it down: resumed where Triton is missing, or on other hardware, it would otherwise go
    on by other arithmetic without a word.
    """
    if options.compile != "auto":
        return options
    # For a GPU the compiler writes Triton; on a CPU it takes minutes, and gains little.
    has_triton = importlib.util.find_spec("triton") is not None
    works = accelerator == "gpu" and has_triton and torch.cuda.get_device_capability() >= LEAST_CAPABILITY
    return replace(options, compile=works)


def compile_model(model: CLIP, unit: Unit = "block", **options: Any) -> None:
    """Compiles both towers in place, so that the names of the weights stay what they are; the work is done when used.

    Args:
        model: on any device.
        unit: what one graph holds. A "tower" fuses a little more over the borders of blocks, but takes minutes to
            compile.
        options: of torch.compile.
    """
    configure_compiler(unit)
    if unit == "tower":
        regions: list[torch.nn.Module] = [model.image, model.text]
    else:
        # The text tower's last block is a class of its own with little work: it would be compiled anew for each length.
        regions = [*model.image.trunk.blocks, *model.text.blocks[:-1]]
    for region in regions:
        region.compile(dynamic=False, **options)


def configure_compiler(unit: Unit = "block") -> None:
    """Settings of this process: where compiled code is kept, how many graphs there may be, whether DDP splits them."""
    # Compiled code calls our operators by name and relies on what they return, so other kernels have other code.
    package = importlib.util.find_spec("clip_la_kernels")
    folders = (package.submodule_search_locations if package else None) or []
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*.py")):
        digest.update(path.read_bytes())
    # Under the system's folder for temporary files, PyTorch's own choice, it would be lost now and then.
    cache = cache_folder() / "compiled" / digest.hexdigest()[:HASH_DIGITS]
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, MAX_GRAPHS)
    # DDP's buckets are smaller than a block of ViT-B: it would split each block's graph to overlap its reductions, as
    # blocks compiled one by one do anyway.
    dynamo.optimize_ddp = unit == "tower"
    functorch: Any = torch._functorch.config
    if hasattr(functorch, "autograd_cache_allow_custom_autograd_functions"):
        # Our attention's graphs are cached by their operators and numbers like all others.
        functorch.autograd_cache_allow_custom_autograd_functions = True


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs compiled modules as they were written: for shapes that come once, as in an evaluation."""
    with torch.compiler.set_stance("force_eager"):
        yield
