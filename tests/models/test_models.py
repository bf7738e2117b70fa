"""Properties of every preset and of every attention kind in a whole model."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from clip_la.models import CLIP, create_model, list_attention, list_models, model_from_spec, model_spec
from clip_la.models.attention.kinds import attention_kind
from clip_la.models.clip import empty_model
from clip_la.models.flops import num_parameters

END_OF_TEXT = 49407
SMALL = [name for name in list_models() if model_spec(name).image_size == 32]


# Convolution and gates serve patches; nothing reads the patches after the last block of the image tower.
UNREAD = ("attn.conv.", "attn.rates.", "attn.gate_down.", "attn.gate_up.")


def towers(attention: str) -> dict[str, str]:
    """This attention in both towers, or in the image tower alone if it has no causal form."""
    causal = attention_kind(attention.partition("(")[0]).causal
    return {"image_attention": attention, "text_attention": attention if causal else "softmax"}


def captions(lengths: list[int], width: int) -> Tensor:
    """Rows of token numbers, an end-of-text token last, padded with 0."""
    tokens = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, : length - 1] = torch.randint(1, END_OF_TEXT, (length - 1,))
        tokens[row, length - 1] = END_OF_TEXT
    return tokens


def randomised(model: CLIP) -> CLIP:
    """Larger, random weights everywhere: at initialisation a wrong term may be too small to see."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


AROUND = "conv=5,gate=sigmoid,norm=rms,rope=axial,cls=softmax"


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, "softmax") for name in list_models()),
        *(("vit_micro", kind) for kind in list_attention()),
        ("vit_ti16", "linear_mean(conv=dynamic)"),
        *(("vit_ti16", f"{kind}({AROUND})") for kind in ("softmax", "linear_mean", "inline")),
        ("vit_nano", "kernel(map=focused,over=length,temperature=learned)"),
    ],
)
def test_parameters_are_as_counted(name: str, attention: str) -> None:
    spec = model_spec(name, **towers(attention))
    model = empty_model(spec)
    expected = num_parameters(spec)
    assert sum(p.numel() for p in model.image.parameters()) == expected["image"]
    assert sum(p.numel() for p in model.text.parameters()) == expected["text"]
    assert sum(p.numel() for p in model.parameters()) == expected["total"]


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_have_narrow_heads(name: str) -> None:
    spec = model_spec(name)
    assert 16 <= spec.image_width // spec.image_heads <= 32
    assert 16 <= spec.text_width // spec.text_heads <= 32


@pytest.mark.parametrize("attention", list_attention())
@pytest.mark.parametrize("name", SMALL)
def test_features_are_unit_rows_and_every_weight_learns(name: str, attention: str) -> None:
    model = create_model(name, **towers(attention), seed=1)
    images, tokens = torch.randn(3, 3, 32, 32), captions([5, 9, 2], width=11)
    image_features, text_features, scale = model(images, tokens)
    for features in (image_features, text_features):
        assert features.shape == (3, model.spec.embed_dim)
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    assert scale.item() == pytest.approx(1 / 0.07)
    (scale * (image_features @ text_features.T)).logsumexp(0).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.stride() == parameter.stride(), parameter_name
        last = parameter_name.startswith(f"image.trunk.blocks.{model.spec.image_layers - 1}.")
        unread = last and any(part in parameter_name for part in UNREAD)
        assert (parameter.grad.abs().max() > 0) != unread, parameter_name


@pytest.mark.parametrize("attention", list_attention())
def test_trimming_padding_changes_nothing(attention: str) -> None:
    model = randomised(create_model("vit_nano", **towers(attention), seed=2)).eval()
    tokens = captions([5, 3, 9], width=model.spec.context_length)
    whole = model.encode_text(tokens, normalize=False)
    torch.testing.assert_close(whole, model.encode_text(tokens[:, :9], normalize=False), rtol=1e-4, atol=1e-5)
    alone = model.encode_text(tokens[1:2, :3], normalize=False)
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-5)


def test_layers_follow_the_pattern() -> None:
    model = empty_model(model_spec("vit_micro", image_attention="linear(b=0.5)+softmax+linear_norm"))
    kinds = [type(block.attn).__name__ for block in model.image.trunk.blocks]
    assert kinds == ["LinearAttention", "SoftmaxAttention", "LinearAttention"]
    assert model.image.trunk.blocks[0].attn.options["b"] == 0.5
    assert model.image.trunk.blocks[2].attn.options["denominator"] == "sum"


def test_the_last_block_computes_what_a_whole_block_would() -> None:
    model = randomised(create_model("vit_nano", seed=3)).eval()
    images = torch.randn(2, 3, 32, 32)
    found = model.encode_image(images, normalize=False)
    trunk = model.image.trunk
    x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(images)))
    for block in trunk.blocks:
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(found, model.image.projection(trunk.fc_norm(x)[:, 0]))


def test_a_seed_gives_the_same_weights_whatever_the_attention() -> None:
    state = torch.get_rng_state()
    first = create_model("vit_pico", attention="softmax", seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    second = create_model("vit_pico", attention="rala(norm=rms)", seed=5).state_dict()
    other = create_model("vit_pico", seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["image.projection.weight"], other["image.projection.weight"])


def test_without_a_seed_the_global_generator_rules() -> None:
    torch.manual_seed(3)
    first = create_model("vit_pico").state_dict()["text.projection.weight"]
    second = create_model("vit_pico").state_dict()["text.projection.weight"]
    torch.manual_seed(3)
    again = create_model("vit_pico").state_dict()["text.projection.weight"]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_captions_too_long_are_refused() -> None:
    model = create_model("vit_pico", context_length=7)
    assert model.encode_text(captions([7], width=7)).shape == (1, model.spec.embed_dim)
    with pytest.raises(ValueError, match="8 tokens; this model takes 7"):
        model.encode_text(captions([8], width=8))


def test_models_copy_and_pickle() -> None:
    model = create_model("vit_pico", attention="linear_norm", seed=1)
    images = torch.randn(1, 3, 32, 32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.encode_image(images), model.encode_image(images))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    images, tokens = torch.randn(2, 3, 32, 32), captions([4, 6], width=6)
    gradients = []
    for enable in (False, True):
        model = model_from_spec(model_spec("vit_nano", attention="linear"), seed=1).train()
        model.set_grad_checkpointing(enable)
        image_features, text_features, _ = model(images, tokens)
        (image_features @ text_features.T).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_weight_decay_spares_what_open_clip_spares() -> None:
    model = empty_model(model_spec("vit_pico"))
    spared = model.no_weight_decay()
    decayed = {name for name, _ in model.named_parameters()} - spared
    mixed = empty_model(model_spec("vit_pico", image_attention="mhla(conv=3,norm=rms)")).no_weight_decay()
    assert {f"image.trunk.blocks.0.attn.{n}" for n in ("mixture", "head_norm.weight")} <= mixed
    assert "image.trunk.blocks.0.attn.conv.weight" not in mixed
    assert {"logit_scale", "image.trunk.cls_token", "text.norm.weight", "text.blocks.0.attn.qkv.bias"} <= spared
    assert {"image.trunk.pos_embed", "text.position_embedding", "text.token_embedding.weight"} <= decayed


@pytest.mark.parametrize("attention", list_attention())
def test_every_kind_learns_a_batch_by_heart(attention: str) -> None:
    model = create_model("vit_pico", **towers(attention), seed=1)
    images, tokens, own = torch.randn(16, 3, 32, 32), captions(list(range(2, 18)), width=17), torch.arange(16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    # fastmax1 is the slowest: its denominator may vanish at t = 1.
    for _ in range(60):
        image_features, text_features, scale = model(images, tokens)
        loss = torch.nn.functional.cross_entropy(scale * image_features @ text_features.T, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * math.log(16)


def test_low_precision_features_come_in_float32() -> None:
    model = create_model("vit_pico", seed=1)
    images = torch.randn(5, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.encode_image(images)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, model.encode_image(images), rtol=0.1, atol=0.02)


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_the_model_is_one_graph_for_the_compiler(attention: str) -> None:
    model = create_model("vit_pico", attention=attention, seed=1).eval()
    images, tokens = torch.randn(2, 3, 32, 32), captions([4, 6], width=6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for found, wanted in zip(compiled(images, tokens), model(images, tokens), strict=True):
            torch.testing.assert_close(found, wanted)
    torch.compiler.reset()
