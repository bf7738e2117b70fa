"""What the models may need: nothing but torch, timm and the kernels; the arithmetic not even those."""

import subprocess
import sys

BLOCKED = "import sys; sys.modules.update(dict.fromkeys({names!r}))\n"


def run(code: str, *, without: list[str]) -> str:
    """Output of `code` in a fresh interpreter in which importing any of `without` raises ImportError."""
    command = [sys.executable, "-c", BLOCKED.format(names=without) + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_models_run_without_the_rest_of_the_suite() -> None:
    code = """
import torch, clip_la.models
model = clip_la.models.create_model("vit_pico", attention="linear", seed=1)
image, text, scale = model(torch.zeros(1, 3, 32, 32), torch.tensor([[1, 49407]]))
print(tuple(image.shape), tuple(text.shape))
"""
    absent = [
        "webdataset",
        "open_clip",
        "jsonargparse",
        "pytorch_lightning",
        "lightning_fabric",
        "clip_la.data",
        "scipy",
    ]
    assert run(code, without=absent) == "(1, 48) (1, 48)"


def test_arithmetic_needs_no_torch() -> None:
    code = """
from clip_la.cli import main
from clip_la.models.flops import flops
from clip_la.models import ModelSpec, list_attention, list_models, model_spec
assert main(["models", "vit_b16"]) == 0
print(flops(ModelSpec.from_dict(model_spec("vit_b16", attention="linear").to_dict()))["total"])
"""
    assert run(code, without=["torch", "timm", "numpy", "clip_la_kernels"]).splitlines()[-1] == "40095973376"
