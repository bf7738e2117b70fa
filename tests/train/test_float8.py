"""Float8 layers: what they are, how far they round, and what is said where they cannot be."""

import sys

import pytest
import torch

from clip_la.errors import UserError
from clip_la.models import create_model
from clip_la.train.float8 import use_float8

from .runs import BATCH, train


def features_and_gradients(model):
    torch.manual_seed(0)
    images, tokens = torch.randn(4, 3, 32, 32), torch.randint(1, 49000, (4, 9))
    image_features, text_features, _ = model(images, tokens)
    (image_features @ text_features.T).diagonal().sum().backward()
    return torch.cat([image_features, text_features]), {n: p.grad for n, p in model.named_parameters()}


def test_the_blocks_multiply_in_float8_and_little_changes():
    pytest.importorskip("torchao", reason="torchao is not in this environment")
    plain, ours = create_model("vit_nano", seed=0), create_model("vit_nano", seed=0)
    use_float8(ours, emulate=True)
    changed = {name for name, layer in ours.named_modules() if type(layer).__name__ == "Float8Linear"}
    tower = [f"{place}.{depth}" for place in ("image.trunk.blocks", "text.blocks") for depth in range(2)]
    assert changed == {f"{at}.{own}" for at in tower for own in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    # Weights and names are the same.
    assert ours.state_dict().keys() == plain.state_dict().keys()
    (expected, reference), (found, gradients) = features_and_gradients(plain), features_and_gradients(ours)
    # e4m3 keeps three bits behind the leading one.
    assert 0 < (found - expected).norm() / expected.norm() < 0.1
    for name, gradient in reference.items():
        if gradient is not None and name.endswith("weight") and "blocks" in name:
            assert (gradients[name] - gradient).norm() < 0.2 * gradient.norm() + 1e-4, name


def test_without_torchao_one_line_says_so(run_options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"model.float8 needs torchao: pip install 'clip_la\[float8\]'"):
        train(tmp_path / "run", run_options, "--budget_samples", BATCH, "--model.float8", "true")


def test_a_cpu_is_refused(run_options, tmp_path, monkeypatch):
    monkeypatch.setattr("clip_la.train.task.use_float8", lambda model: None)
    with pytest.raises(UserError, match=r"needs a GPU of compute capability 8\.9"):
        train(tmp_path / "run", run_options, "--budget_samples", BATCH, "--model.float8", "true")
    assert not (tmp_path / "run").exists()
