"""What the stages minimise, against sums over tokens written out, and what they train."""

import pytest
import torch

from clip_la.convert.copying import converted_spec, copy_weights, write_copy
from clip_la.convert.matching import FeatureMatching, LayerMatching, changed_layers, unexplained
from clip_la.models import create_model, model_spec
from clip_la.models.clip import CLIP
from clip_la.train.beginning import Beginning
from clip_la.train.compiled import uncompiled
from clip_la.train.options import ModelOptions
from tests.train.tapes import record_on_the_cpu

LENGTHS = (5, 9, 7)
END = 49407


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(3)
    tokens = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[: length - 1] = torch.randint(1, 40000, (length - 1,), generator=generator)
        row[length - 1] = END
    images = torch.randint(0, 256, (len(LENGTHS), 3, 32, 32), generator=generator, dtype=torch.uint8)
    return {"image": images, "tokens": tokens}


def matching(kind, folder, *, image="softmax", text="softmax", compiled=False, graphs=None):
    """A task of `kind` whose student is a copy of its teacher, with its teacher."""
    teacher = create_model("vit_nano", seed=1)
    spec = converted_spec(teacher.spec, None, image, text)
    path = folder / "copied.ckpt"
    write_copy(path, copy_weights(teacher, spec, 0), Beginning(teacher, None, None, []), 0)
    options = ModelOptions(
        name="vit_nano",
        init_from=str(path),
        image_attention=spec.image_attention,
        text_attention=spec.text_attention,
        compile=compiled,
        cuda_graphs=graphs,
    )
    return kind(options, teacher, batch_size=4, budget_samples=8), teacher


def test_unexplained_is_error_over_variance():
    out, target = torch.randn(2, 3, 4), 5 + torch.randn(2, 3, 4)
    read = torch.tensor([[True, True, False], [True, False, False]])
    x, y = out[read].double(), target[read].double()
    expected = (x - y).square().sum() / (y - y.mean(0)).square().sum()
    assert unexplained(out, target, read).item() == pytest.approx(expected.item(), rel=1e-5)
    assert unexplained(target, target, read).item() == 0
    constant = target[read].mean(0).expand_as(target)
    assert unexplained(constant, target, read).item() == pytest.approx(1, rel=1e-5)


def test_layers_that_differ():
    plain = model_spec("vit_micro")
    assert changed_layers(plain, plain.replace(image_attention="linear,softmax@1")) == {"image": [0, 2]}
    assert changed_layers(plain, plain) == {"image": [0, 1, 2], "text": [0, 1]}


@pytest.mark.parametrize("kind", [LayerMatching, FeatureMatching])
def test_a_copy_of_the_same_attention_has_nothing_to_learn(kind, batch, tmp_path):
    task, _ = matching(kind, tmp_path)
    loss = task.training_step(batch, 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in task.parameters())
    expected = ["image_0", "image_1", "text_0", "text_1"] if kind is LayerMatching else ["image", "text"]
    assert task.parts_of_loss() == dict.fromkeys(expected, 0.0)


def inputs_of_attention(model: CLIP, batch, tower):
    """Each layer's attention input on the way through a tower, by its blocks one after another."""
    spec = model.spec
    if tower == "image":
        trunk = model.image.trunk
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.pixel_mean, spec.pixel_std))
        pixels = (batch["image"] / 255 - mean) / std
        x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))
        blocks, causal = trunk.blocks, False
    else:
        x = model.text.token_embedding(batch["tokens"]) + model.text.position_embedding[: max(LENGTHS)]
        blocks, causal = model.text.blocks, True
    for block in blocks:
        yield block.norm1(x)
        x = x + block.attn(block.norm1(x), is_causal=causal)
        x = x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_layers_loss_against_sums_over_tokens(tower, batch, tmp_path):
    task, teacher = matching(LayerMatching, tmp_path, **{tower: "linear_mean"})
    loss = task.training_step(batch, 0)
    student = task.model.image.trunk.blocks if tower == "image" else task.model.text.blocks
    theirs = teacher.image.trunk.blocks if tower == "image" else teacher.text.blocks
    expected = []
    with torch.no_grad():
        for depth, x in enumerate(inputs_of_attention(teacher, batch, tower)):
            out, target = (blocks[depth].attn(x, is_causal=tower == "text").double() for blocks in (student, theirs))
            if tower == "image":
                rows = [(row, place) for row in range(3) for place in (range(17) if depth == 0 else (0,))]
            else:
                rows = [
                    (row, place)
                    for row, length in enumerate(LENGTHS)
                    for place in (range(length) if depth == 0 else (length - 1,))
                ]
            ours = torch.stack([out[at] for at in rows])
            wanted = torch.stack([target[at] for at in rows])
            expected.append(((ours - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()).item())
    assert list(task.parts_of_loss().values()) == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_the_features_loss_is_one_minus_the_cosine(batch, tmp_path):
    task, teacher = matching(FeatureMatching, tmp_path, image="linear_mean", text="linear_mean")
    loss = task.training_step(batch, 0)
    spec = teacher.spec
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.pixel_mean, spec.pixel_std))
    pixels = (batch["image"] / 255 - mean) / std
    with torch.no_grad():
        cosines = [
            torch.cosine_similarity(task.model.encode_image(pixels), teacher.encode_image(pixels)).mean(),
            torch.cosine_similarity(
                task.model.encode_text(batch["tokens"]), teacher.encode_text(batch["tokens"])
            ).mean(),
        ]
    assert loss.item() == pytest.approx(1 - sum(c.item() for c in cosines) / 2, abs=1e-5)
    assert loss.item() > 0.001


def test_only_what_a_stage_is_for_trains(batch, tmp_path):
    layers, _ = matching(LayerMatching, tmp_path, image="softmax+linear_mean(gate=sigmoid)")
    trained = {name for name, p in layers.model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in layers.model.named_parameters() if n.startswith("image.trunk.blocks.1.attn.")}
    layers.training_step(batch, 0).backward()
    assert all(p.grad is not None for p in layers.model.parameters() if p.requires_grad)
    features, _ = matching(FeatureMatching, tmp_path, text="linear")
    trained = {name for name, p in features.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in features.model.named_parameters() if name.startswith("text.")}
    # A teacher is no part of what is saved.
    assert set(features.state_dict()) == {f"model.{name}" for name in features.model.state_dict()}


@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize("kind", [LayerMatching, FeatureMatching])
def test_recorded_passes_have_the_same_losses_and_gradients(kind, is_mixed, batch, tmp_path, monkeypatch):
    """Step after step, with other weights, and for two lengths of captions, each of which comes again: what a recording
    keeps from one step, such as weights in bfloat16, must not reach the next."""
    plans = {"image": "rala+softmax", "text": "linear_mean"}
    plain, _ = matching(kind, tmp_path, **plans)
    recorded, _ = matching(kind, tmp_path, **plans, compiled=True)
    record_on_the_cpu(monkeypatch)
    tolerance = 1e-2 if is_mixed else 1e-4
    other = {"image": 255 - batch["image"], "tokens": batch["tokens"].flip(0)}
    longer = {**other, "tokens": torch.nn.functional.pad(batch["tokens"], (9, 0), value=7)}
    for each in (batch, other, longer, batch, {**longer, "image": batch["image"]}):
        losses = []
        for task in (plain, recorded):
            # Compiling is not what is tested, and takes a minute.
            with uncompiled(), torch.autocast("cpu", torch.bfloat16, is_mixed):
                loss = task.training_step(each, 0)
            # In the trainer's order: the last step's gradients are still there in the forward pass.
            task.zero_grad()
            loss.backward()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=tolerance)
        assert recorded.parts_of_loss() == pytest.approx(plain.parts_of_loss(), rel=tolerance)
        for (name, one), two in zip(plain.named_parameters(), recorded.parameters(), strict=True):
            assert (one.grad is None) == (two.grad is None), name
            if one.grad is not None:
                assert (two.grad - one.grad).norm() <= tolerance * one.grad.norm() + 1e-6, name
                for weight in (one.data, two.data):
                    weight.sub_(one.grad, alpha=0.1).mul_(1.2)
    graphed = recorded._graphed if kind is LayerMatching else recorded._teacher.encoder._graphed
    # Captions of 9 tokens are padded to 16, those of 18 to 32.
    assert {tower: len(each._recordings) for tower, each in graphed.items()} == {"image": 1, "text": 2}
    assert recorded.new_shapes(batch) == [16]
    assert recorded.new_shapes(longer) == [32]
    recorded.release()
    assert not any(each._recordings for each in graphed.values())


def test_lengths_are_new_only_to_what_compiles_or_records(batch, tmp_path, monkeypatch):
    """The progress line calls them compiling, and their steps' time is left out of the rate."""
    layers, _ = matching(LayerMatching, tmp_path, image="linear_mean", compiled=True)
    assert layers.new_shapes(batch) == []
    record_on_the_cpu(monkeypatch)
    # The tower of the captions has nothing to learn.
    assert layers.new_shapes(batch) == []


@pytest.mark.parametrize(("compiled", "graphs"), [(True, None), (False, None), (True, False), (False, True)])
@pytest.mark.parametrize("kind", [LayerMatching, FeatureMatching])
def test_both_kinds_record_where_training_would(kind, compiled, graphs, batch, tmp_path, monkeypatch):
    record_on_the_cpu(monkeypatch)
    task, _ = matching(kind, tmp_path, image="linear_mean", compiled=compiled, graphs=graphs)
    with uncompiled():
        task.training_step(batch, 0)
    graphed = task._graphed if kind is LayerMatching else task._encoder._graphed
    assert any(each._recordings for each in graphed.values()) is (compiled if graphs is None else graphs)
