"""Attention patterns and specifications: what is read, what is refused, what comes back."""

import json

import pytest

from clip_la.errors import UserError
from clip_la.models.attention.pattern import canonical_pattern, layer_choices
from clip_la.models.registry import list_models, model_spec, register_model
from clip_la.models.spec import ModelSpec


@pytest.mark.parametrize(
    ("pattern", "canonical"),
    [
        ("softmax", "softmax"),
        ("softmax*4", "softmax"),
        ("linear(a=1,b=1)", "linear"),
        (" linear( a = 0.5 , b=1 ) ", "linear(a=0.5)"),
        ("linear(b=2e+0,a=3)", "linear(a=3,b=2)"),
        ("linear*3+softmax", "linear*3+softmax"),
        ("linear+linear+softmax*2", "linear*2+softmax*2"),
        ("linear(b=1e+1)*2 + linear*2", "linear(b=10)*2+linear*2"),
        ("linear_map(feature_map=relu)", "linear_map(feature_map=relu)"),
        ("linear_map(feature_map=elu1)", "linear_map"),
    ],
)
def test_equal_attention_has_one_spelling(pattern: str, canonical: str) -> None:
    assert canonical_pattern(pattern, 4) == canonical
    assert canonical_pattern(canonical, 4) == canonical
    assert layer_choices(pattern, 4) == layer_choices(canonical, 4)


def test_layers_come_in_order() -> None:
    choices = layer_choices("linear(a=2)+softmax*2", 3)
    assert [choice.kind for choice in choices] == ["linear", "softmax", "softmax"]
    assert choices[0].options == {"a": 2.0, "b": 1.0}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("softmx", "unknown attention kind 'softmx'; did you mean softmax"),
        ("linear(c=1)", "unknown option of attention 'linear' 'c'"),
        ("softmax(a=1)", "'softmax' has no options"),
        ("linear(a)", "is not option=value"),
        ("linear(a=x)", "'x' is not a number"),
        ("linear(a=nan)", "finite"),
        ("linear_norm(a=1,b=2)", r"\|b\| <= a"),
        ("linear_norm(a=-1)", "a > 0"),
        ("linear_norm(eps=0)", "finite number >= 1e-08"),
        ("linear_map(feature_map=sin)", "none of elu1, relu, exp"),
        ("linear*5+softmax", "is for 6 layers, this tower has 4"),
        ("linear*0", "is for 0 layers"),
        ("linear++softmax", "cannot read ''"),
        ("linear-softmax", "cannot read 'linear-softmax'"),
        ("", "cannot read ''"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        layer_choices(pattern, 4)


@pytest.mark.parametrize("name", list_models())
def test_a_specification_survives_json(name: str) -> None:
    spec = model_spec(name, image_attention="linear(b=0.5)", text_attention="linear_norm")
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.name == name
    assert again.attention == "linear(b=0.5)/linear_norm"


def test_towers_are_chosen_apart() -> None:
    assert model_spec("vit_nano", attention="linear").attention == "linear"
    spec = model_spec("vit_nano", attention="linear", text_attention="softmax")
    assert (spec.image_attention, spec.text_attention) == ("linear", "softmax")
    assert model_spec("vit_nano", image_size=64).num_image_tokens == 65


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 33}, "image_size 33 is no multiple of patch_size 8"),
        ({"image_heads": 5}, "image_width 64 is no multiple of image_heads 5"),
        ({"text_heads": 7}, "text_width 64 is no multiple of text_heads 7"),
        ({"text_layers": 0}, "text_layers is 0"),
        ({"embed_dim": 1.5}, "embed_dim is 1.5"),
        ({"text_layers": True}, "text_layers is True"),
        ({"image_attention": 3}, "image_attention is 3, not a name"),
        ({"pixel_std": (1.0, 0.0, 1.0)}, "deviations above zero"),
        ({"pixel_mean": (0.5, 0.5)}, "not three numbers"),
        ({"activation": "gelu2"}, "unknown activation 'gelu2'"),
        ({"text_attention": "linear*3"}, "text tower of 'vit_nano'.*3 layers"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_spec("vit_nano").replace(**changes)


def test_a_dictionary_with_too_much_or_too_little_is_refused() -> None:
    values = model_spec("vit_nano").to_dict()
    with pytest.raises(
        UserError, match="unknown field of a model specification 'image_widht'; did you mean image_width"
    ):
        ModelSpec.from_dict({**values, "image_widht": 3})
    del values["embed_dim"]
    with pytest.raises(UserError, match="lacks embed_dim"):
        ModelSpec.from_dict(values)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown model 'vit_b_16'; did you mean vit_b16"):
        model_spec("vit_b_16")


def test_a_name_registers_once() -> None:
    def vit_nano() -> ModelSpec:
        return model_spec("vit_pico")

    with pytest.raises(ValueError, match="vit_nano is registered already"):
        register_model(vit_nano)
