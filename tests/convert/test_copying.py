"""Weights of one plan in a model of another."""

import pytest
import torch

from clip_la.convert.copying import converted_spec, copy_weights, load_teacher
from clip_la.errors import UserError
from clip_la.models import create_model, model_spec
from clip_la.models.interop import to_open_clip

PLAN = "linear_mean(conv=3,gate=sigmoid)+hedgehog"


@pytest.fixture(scope="module")
def softmax():
    return create_model("vit_nano", seed=1)


def test_weights_are_equal_to_the_bit_and_the_rest_has_its_initial_values(softmax):
    spec = converted_spec(softmax.spec, None, PLAN, None)
    copy = copy_weights(softmax, spec, seed=7)
    theirs, fresh = softmax.state_dict(), create_model("vit_nano", image_attention=PLAN, seed=7).state_dict()
    own = copy.model.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    # The seeds differ, so that the copy is no coincidence.
    assert not torch.equal(fresh["text.blocks.0.attn.qkv.weight"], own["text.blocks.0.attn.qkv.weight"])
    assert set(copy.fresh) == set(own) - set(theirs)
    assert {name.split("attn.")[1] for name in copy.fresh if ".0." in name} == {
        "conv.weight",
        "gate.linear.weight",
        "gate.linear.bias",
    }
    assert any(".1.attn.map" in name for name in copy.fresh)
    assert all(torch.equal(own[name], fresh[name]) for name in copy.fresh)
    assert copy.left_out == ()


def test_what_is_not_copied_is_told_layers_together():
    deep = create_model("vit_nano", attention="softmax(gate=sigmoid,temperature=learned)", seed=0)
    copy = copy_weights(deep, converted_spec(deep.spec, "linear_mean(conv=5)", None, None), seed=0)
    lines = copy.lines()
    shared = len(deep.state_dict()) - len(copy.left_out)
    assert lines[0] == f"copied {shared} parameters of {shared + 4}"
    assert "at initial values: image.trunk.blocks.*.attn.conv.weight (2 layers)" in lines
    assert "of the teacher, left out: text.blocks.*.attn.gate.linear.bias (2 layers)" in lines


def test_a_tower_that_no_plan_is_for_keeps_its_own():
    mixed = model_spec("vit_nano", image_attention="softmax+linear", text_attention="linear_norm")
    assert converted_spec(mixed, None, "ttt", None).text_attention == "linear_norm"
    assert converted_spec(mixed, "linear", None, "softmax").attention == "linear/softmax"


@pytest.mark.parametrize(
    ("plans", "says"),
    [
        ((None, None, None), "say what to convert to"),
        (("liner", None, None), "did you mean linear"),
        (("linear*3", None, None), "is for 3 layers, this tower has 2"),
        (("ttt", None, None), "has no causal form"),
    ],
)
def test_a_plan_that_cannot_be(softmax, plans, says):
    with pytest.raises(UserError, match=says):
        converted_spec(softmax.spec, *plans)


def test_a_teacher_of_open_clip_is_its_own_model(tmp_path):
    vit = create_model("vit_nano", seed=2)
    file = tmp_path / "nano.pt"
    torch.save({"state_dict": to_open_clip(vit)}, file)
    loaded = load_teacher(f"vit_nano:{file}")
    own = vit.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.model.state_dict().items())
    assert [line["checkpoint"] for line in loaded.lineage] == [f"vit_nano:{file}"]
    assert loaded.lineage[0]["samples_seen"] is None


def test_weights_of_another_width_are_one_line(tmp_path):
    file = tmp_path / "micro.pt"
    torch.save(to_open_clip(create_model("vit_micro", seed=0)), file)
    with pytest.raises(UserError, match=r"micro\.pt is of another architecture than vit_nano: ") as raised:
        load_teacher(f"vit_nano:{file}")
    assert "\n" not in str(raised.value)


def test_no_such_teacher(tmp_path):
    with pytest.raises(UserError, match="no run or checkpoint at nowhere; a model of open_clip is NAME:FILE"):
        load_teacher("nowhere")
    with pytest.raises(UserError, match="is no run: no checkpoints/samples=NUMBER"):
        load_teacher(str(tmp_path))
