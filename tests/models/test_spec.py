"""Attention patterns and specifications: what is read, what is refused, what comes back."""

import json
import resource
from pathlib import Path

import pytest

from clip_la.errors import UserError
from clip_la.models import create_model, load_checkpoint, save_checkpoint
from clip_la.models.attention.pattern import canonical_pattern, layer_choices
from clip_la.models.clip import model_from_spec
from clip_la.models.flops import flops
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
        ("linear:softmax=3:1", "linear*3+softmax"),
        ("linear(a=1,b=2):softmax(conv=5)=1:1", "linear(b=2)+softmax(conv=5)+linear(b=2)+softmax(conv=5)"),
        ("linear:softmax=2:1", "linear*2+softmax+linear"),
        ("linear,softmax@1,3", "linear+softmax+linear+softmax"),
        ("linear(b=2,a=1), softmax(conv=3,gate=none)@1, mhla@2,0", "mhla+softmax(conv=3)+mhla+linear(b=2)"),
        ("inline(conv=3,norm=none)", "inline"),
    ],
)
def test_equal_attention_has_one_spelling(pattern: str, canonical: str) -> None:
    assert canonical_pattern(pattern, 4) == canonical
    assert canonical_pattern(canonical, 4) == canonical
    assert layer_choices(pattern, 4) == layer_choices(canonical, 4)


def test_layers_come_in_order() -> None:
    choices = layer_choices("linear(a=2)+softmax*2", 3)
    assert [choice.kind for choice in choices] == ["linear", "softmax", "softmax"]
    around = {"conv": "0", "gate": "none", "norm": "none", "rope": "none", "cls": "same"}
    assert choices[0].options == {"a": 2.0, "b": 1.0, **around}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("softmx", "unknown attention kind 'softmx'; did you mean softmax"),
        ("linear(c=1)", "unknown option of attention 'linear' 'c'"),
        ("softmax(a=1)", "unknown option of attention 'softmax' 'a'"),
        ("softmax(conv=4)", "option 'conv': '4' is none of 0, 3, 5"),
        ("mhla(blocks=1.5)", "1.5 is not a whole number >= 1"),
        ("linear_map(rope=axial)", "rope turns positive features negative"),
        ("kernel(map=identity)", "over=sum divides by weights that map=identity lets vanish"),
        ("kernel(map=elu1,over=subtract,a=1)", "a=1 has no part in over=subtract"),
        ("kernel(map=relu,temperature=learned)", "a learned temperature does not act"),
        ("linear:softmax=5", "as many numbers above zero"),
        ("linear:softmax=5:0", "as many numbers above zero"),
        ("linear=4", "as many numbers above zero"),
        ("linear:softmax=5:1", "is 6 layers long, this tower has 4"),
        ("linear:softmax=1:x", "'x' in the attention .* is no whole number"),
        ("linear,softmax@4", "names layer 4, this tower has 0 to 3"),
        ("linear,softmax@1,1", "names layer 1 twice"),
        ("linear*2,softmax@1", "'linear\\*2' .* has a count"),
        ("linear,softmax", "cannot read 'linear,softmax'"),
        ("linear,3,softmax@1", "'3' .* is at no layer"),
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
        ({"text_attention": "linear+ttt"}, "text tower of 'vit_nano': 'ttt' has no causal form"),
        (
            {"image_attention": "mala", "image_width": 72},
            "image tower .* wants heads of a multiple of 4.*these have 18",
        ),
        ({"text_attention": "softmax(rope=axial)", "text_width": 60}, "text tower .* a multiple of 2.*these have 15"),
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


def test_patches_of_another_size_are_carried_by_the_checkpoint(tmp_path: Path) -> None:
    model = create_model("vit_w64", image_size=64, patch_size=4, seed=1)
    assert (model.spec.name, model.spec.patch_size, model.spec.num_image_tokens) == ("vit_w64", 4, 257)
    save_checkpoint(tmp_path / "m.ckpt", model)
    read, _ = load_checkpoint(tmp_path / "m.ckpt")
    assert read.spec == model.spec == model_spec("vit_w64", image_size=64, patch_size=4)
    assert read.image.trunk.patch_embed.proj.weight.shape == (64, 3, 4, 4)


def test_sizes_of_a_study_span_what_it_needs() -> None:
    """Twelve layers and heads of 64 in both towers, both of one width: only the width differs."""
    ladder = ["vit_w64", "vit_w128", "vit_ti16", "vit_w256", "vit_s16", "vit_w512"]
    specs = [model_spec(name, image_size=128, patch_size=8) for name in ladder]
    assert [spec.image_width for spec in specs] == [64, 128, 192, 256, 384, 512]
    for spec in specs:
        assert spec.image_layers == spec.text_layers == 12
        assert spec.embed_dim == spec.text_width == spec.image_width == 64 * spec.image_heads == 64 * spec.text_heads
    cost = [flops(spec)["total"] for spec in specs]
    assert cost == sorted(cost)
    assert cost[-1] / cost[0] > 10**1.5


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"image_size": 100_000}, "image_size 100000 with patch_size 16 makes 39,062,501 tokens, above the 1,048,576"),
        ({"context_length": 2_000_000}, "context_length 2000000 makes 2,000,000 tokens, above the 1,048,576"),
    ],
)
def test_towers_of_too_many_tokens_are_refused(sizes: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        model_spec("vit_ti16", **sizes)
    # So is a trained model at another size, as `clip-la eval --image-size` makes it.
    with pytest.raises(UserError, match=says):
        model_spec("vit_ti16").replace(**sizes)


def test_a_model_that_does_not_fit_into_memory_is_one_line() -> None:
    spec = model_spec("vit_pico", context_length=1 << 20)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), hard))
    try:
        with pytest.raises(
            UserError, match=r"does not fit into memory at image_size .* context_length 1048576"
        ) as error:
            model_from_spec(spec)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert "\n" not in str(error.value)
