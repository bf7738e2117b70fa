"""Fixtures that every test shares. Without a GPU the kernels run in Triton's interpreter."""

import os
import random

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton, which the modules of many tests do through torch and timm.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same seeds, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries under test still read the global generator)
    torch.manual_seed(0)
