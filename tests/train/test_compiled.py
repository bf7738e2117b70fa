"""Compiled by regions: as many graphs for many layers as for few, the same features, and only while training."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from clip_la.data.text.tokenizer import order_of
from clip_la.models import model_spec
from clip_la.models.clip import model_from_spec
from clip_la.train.compiled import MAX_GRAPHS, compile_model, configure_compiler, decided, uncompiled
from clip_la.train.lengths import LENGTH_STEP, encode_by_length, groups_by_length, pad_captions, padded_length
from clip_la.train.options import ModelOptions
from clip_la.train.patches import draw_kept
from clip_la.train.task import ContrastiveTask

CONTEXT = 40


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No graphs of other tests, neither before nor after."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def model_of(layers, attention="linear"):
    spec = dataclasses.replace(
        model_spec("vit_pico"),
        image_layers=layers,
        text_layers=layers,
        image_attention=attention,
        text_attention=attention,
        context_length=CONTEXT,
    )
    return model_from_spec(spec, seed=0)


def captions(lengths, seed=0):
    """Zero-padded captions of these lengths, each with an end-of-text token, the highest number."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, 49406, (length,), generator=generator)
        row[length - 1] = 49407
    return tokens


def step(model, tokens):
    """Features and all gradients of some loss, as one list."""
    images = torch.randn(len(tokens), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    image, text, scale = model(images, tokens)
    (scale * (image * text.roll(1, 0)).sum()).backward()
    return [image.detach(), text.detach(), *(p.grad.clone() for p in model.parameters())]


def padded(tokens):
    return pad_captions(tokens, padded_length(tokens.shape[1], CONTEXT))


def num_graphs(layers, longest):
    model = model_of(layers)
    compile_model(model, backend="eager")
    for length in longest:
        step(model, padded(captions([5, length, 7])))
    found = counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]
    torch.compiler.reset()
    counters.clear()
    return found


def test_six_layers_are_as_many_graphs_as_two_and_lengths_share_them():
    one_length = num_graphs(6, [9])
    assert one_length == 3  # in each tower all blocks but the last, and the image tower's last
    # Two lengths, 16 and 32, of the text tower's blocks.
    assert num_graphs(2, [9, 12, 16, 17, 12, 32, 20]) == one_length + 1


def test_as_many_lengths_as_a_long_context_has_are_not_too_many():
    model = model_of(2)
    with torch._dynamo.config.patch(recompile_limit=2):
        compile_model(model, backend="eager")  # raises the limit
        for length in (8, 9, 10, 11):
            with torch.no_grad():
                model.encode_text(captions([5, length]))
    assert counters["stats"]["unique_graphs"] == 4 <= MAX_GRAPHS


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_a_compiled_step_is_the_eager_one(attention):
    tokens = captions([3, 11, 20, 8])
    eager = step(model_of(2, attention), tokens)
    model = model_of(2, attention)
    compile_model(model, backend="aot_eager")
    for found, wanted in zip(step(model, padded(tokens)), eager, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", ["block", "tower"])
def test_other_patches_need_no_other_graph(unit):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    eager, model = model_of(2).image, model_of(2)
    compile_model(model, unit, backend="aot_eager")
    for first in (0, 4, 8):
        kept = draw_kept(0, first, 4, 16, 8, images.device)
        found, wanted = model.image(images, kept), eager(images, kept)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        graphs = counters["stats"]["unique_graphs"]
        assert graphs == (2 if unit == "block" else 1)


def test_nothing_is_compiled_where_that_is_switched_off():
    model = model_of(2)
    compile_model(model, backend="aot_eager")
    with uncompiled():
        step(model, captions([3, 9]))
    assert not counters["stats"]["unique_graphs"]
    step(model, captions([3, 9]))
    assert counters["stats"]["unique_graphs"] == 3


@pytest.mark.parametrize("num_groups", [2, 3, 5])
@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_groups_by_length_have_the_features_and_gradients_of_one_batch(attention, num_groups):
    model = model_of(2, attention).double()
    tokens = captions([20, 3, 11, 35, 8])
    order = order_of(tokens)
    assert order["by_length"].tolist() == [1, 4, 2, 0, 3]
    assert order["sorted_lengths"] == [3, 8, 11, 20, 35]
    lengths = []

    def encode(group):
        lengths.append(group.shape[1])
        return model.encode_text(group)

    wanted = model.encode_text(tokens)
    groups = groups_by_length(order["sorted_lengths"], num_groups, CONTEXT)
    found = encode_by_length(encode, groups, tokens, order["by_length"])
    torch.testing.assert_close(found, wanted)
    assert lengths == {2: [16, 40], 3: [16, 16, 40], 5: [16, 16, 16, 32, 40]}[num_groups]
    weight = torch.randn_like(wanted)
    parameters = list(model.text.parameters())
    for a, b in zip(*(torch.autograd.grad((f * weight).sum(), parameters) for f in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b)


def test_lengths_are_multiples_of_a_step_or_the_context():
    assert [padded_length(n, 77) for n in (1, 16, 17, 64, 65, 77)] == [16, 16, 32, 64, 77, 77]
    assert padded_length(9, 8) == 8
    assert padded_length(LENGTH_STEP + 1, 2 * LENGTH_STEP) == 2 * LENGTH_STEP


def test_the_step_says_for_which_lengths_it_will_be_compiled():
    sizes = {"batch_size": 4, "budget_samples": 4}
    task = ContrastiveTask(ModelOptions(name="vit_pico", compile=True), **sizes)
    batches = [{"tokens": captions([5, 2, 3, length])} for length in (9, 16, 17, 4)]
    assert [task.new_shapes(batch) for batch in batches] == [[16], [], [32], []]
    assert ContrastiveTask(ModelOptions(name="vit_pico"), **sizes).new_shapes(batches[0]) == []
    grouped = ContrastiveTask(ModelOptions(name="vit_pico", compile=True, text_groups=2), **sizes)
    batches = [{**batch, **order_of(batch["tokens"])} for batch in batches]
    assert [grouped.new_shapes(batch) for batch in batches] == [[16], [], [32], []]


@pytest.mark.parametrize(
    ("accelerator", "capability", "has_triton", "compiles"),
    [
        ("gpu", (9, 0), True, True),
        ("gpu", (7, 0), True, True),
        ("gpu", (6, 1), True, False),
        ("gpu", (9, 0), False, False),
        ("cpu", (9, 0), True, False),
    ],
)
def test_a_run_compiles_by_itself_on_a_gpu_with_triton(accelerator, capability, has_triton, compiles, monkeypatch):
    found = object() if has_triton else None
    monkeypatch.setattr("clip_la.train.compiled.importlib.util.find_spec", lambda name: found)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    options = ModelOptions(name="vit_pico", lr=3e-4)
    assert decided(options, accelerator) == dataclasses.replace(options, compile=compiles)
    # What is said, here or in the configuration of a run that goes on, stays.
    for said in (True, False):
        given = dataclasses.replace(options, compile=said)
        assert decided(given, accelerator) == given


def test_compiled_code_is_kept_where_the_next_run_finds_it(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("CLIP_LA_CACHE", str(tmp_path))
    configure_compiler()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.parent == tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "chosen")
    configure_compiler()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "chosen"
    # With other kernels, elsewhere.
    (tmp_path / "clip_la_kernels").mkdir()
    (tmp_path / "clip_la_kernels" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clip_la_kernels")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    configure_compiler()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) != folder
