"""Checkpoints: what is written comes back, anything else is refused by name."""

import contextlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_la.cli import main
from clip_la.errors import UserError
from clip_la.models import CLIP, create_model, load_checkpoint, save_checkpoint
from clip_la.models.checkpoint import META, read_torch_file


@pytest.fixture
def model() -> CLIP:
    return create_model("vit_pico", attention="linear_norm", text_attention="linear(b=0.5)", seed=4)


def same_weights(a: CLIP, b: CLIP) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(n == m and torch.equal(x, y) for (n, x), (m, y) in pairs)


def test_weights_architecture_and_meta_come_back(tmp_path: Path, model: CLIP) -> None:
    path = tmp_path / "model.pt"
    meta = {"samples_seen": 12800, "schedule": "cosine", "versions": {"torch": "2"}, "run_id": None}
    save_checkpoint(path, model, **meta)
    loaded, found = load_checkpoint(path)
    assert found == meta
    assert loaded.spec == model.spec
    assert same_weights(loaded, model)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    # Training may go on, and write over the very file it came from.
    with torch.no_grad():
        loaded.logit_scale.add_(1)
    save_checkpoint(path, loaded)
    assert load_checkpoint(path)[0].logit_scale.item() == pytest.approx(model.logit_scale.item() + 1)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def lightning_checkpoint(path: Path, model: CLIP, **changes: Any) -> None:
    ours = torch.load(path, weights_only=True)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({**ours, "state_dict": weights, "epoch": 0, "optimizer_states": [{"lr": 1.0}], **changes}, path)


def test_a_lightning_checkpoint_is_read(tmp_path: Path, model: CLIP) -> None:
    path = tmp_path / "samples=000000128.ckpt"
    save_checkpoint(path, model, samples_seen=128)
    lightning_checkpoint(path, model)
    loaded, meta = load_checkpoint(path)
    assert meta == {"samples_seen": 128}
    assert same_weights(loaded, model)


def rewrite(path: Path, change: Any) -> None:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("clip_la"), "is no clip_la checkpoint; for another project's weights give NAME:FILE"),
        (lambda c: c["clip_la"].update(format=2), "has checkpoint format 2; this version reads format 1"),
        (lambda c: c["clip_la"]["spec"].pop("embed_dim"), "lacks embed_dim"),
        (lambda c: c["clip_la"]["spec"].update(image_attention="softmx"), "unknown attention kind 'softmx'"),
        (lambda c: c["clip_la"]["spec"].update(text_layers=2), "text.blocks.1.norm1.weight is missing"),
        (lambda c: c["clip_la"]["spec"].update(embed_dim=24), r"projection.weight is \(48, 48\), not \(24, 48\)"),
        (lambda c: c["state_dict"].update(extra=torch.ones(1)), "extra is unknown"),
        (lambda c: c.pop("state_dict"), "holds no state dict of tensors: it is empty"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path, model: CLIP, change: Any, message: str) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model)
    rewrite(path, change)
    with pytest.raises(UserError, match=message) as raised:
        load_checkpoint(path)
    assert str(path) in str(raised.value)


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2.5,
    10**9,
    10**30,
    "12",
    "",
    [],
    [1, 2],
    [0.5, "b", 0.5],
    [0.5, float("nan"), 0.5],
]
ODD += [{}, {"a": 1}, torch.ones(40, 40), b"x", "softmax*999999999", "softmax*" + "9" * 5000]
FIELDS = ["name", "embed_dim", "image_size", "patch_size", "image_width", "image_layers", "image_heads", "text_layers"]
FIELDS += ["context_length", "vocab_size", "image_attention", "activation", "pixel_mean", "pixel_std", "tokenizer"]


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_architecture_is_checked(tmp_path: Path, model: CLIP, field: str) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model)
    refused = []
    for value in ODD:
        rewrite(path, lambda c, value=value: c["clip_la"]["spec"].update({field: value}))
        try:
            load_checkpoint(path)
        except UserError as error:
            refused.append(str(error))
    assert all(str(path) in line and "\n" not in line and len(line) < 400 for line in refused)
    # Text is as good a name of the model as any, and of the tokenizer until it is asked for.
    assert len(refused) >= len(ODD) - (5 if field in ("name", "tokenizer") else 0)


@pytest.mark.parametrize("field", META)
def test_what_a_checkpoint_says_of_its_run_is_checked(tmp_path: Path, model: CLIP, field: str) -> None:
    path = tmp_path / "model.pt"
    kind, least = META[field]
    for value in ODD:
        save_checkpoint(path, model, **{field: value})
        if value is None or (type(value) is kind and (least is None or value >= least)):
            assert load_checkpoint(path)[1] == {field: value}
        else:
            with pytest.raises(UserError, match=rf"{path}: {field} is .*, not "):
                load_checkpoint(path)


def test_a_lineage_is_a_list_of_dictionaries(tmp_path: Path, model: CLIP) -> None:
    path = tmp_path / "model.pt"
    for value in ODD:
        save_checkpoint(path, model, lineage=value)
        if value is None or value == []:
            assert load_checkpoint(path)[1] == {"lineage": value}
        else:
            with pytest.raises(UserError, match=rf"{path}: lineage is .*, not a list of dictionaries"):
                load_checkpoint(path)
    save_checkpoint(path, model, lineage=[{"run_id": "abc"}])
    assert load_checkpoint(path)[1] == {"lineage": [{"run_id": "abc"}]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_weights_are_refused_by_name(tmp_path: Path, model: CLIP, value: float) -> None:
    path = tmp_path / "model.pt"
    with torch.no_grad():
        model.text.norm.bias[7] = value
    save_checkpoint(path, model)
    with pytest.raises(UserError, match=rf"{path}: text.norm.bias holds NaN or infinity"):
        load_checkpoint(path)
    assert main(["export", str(path), str(tmp_path / "out.pt")]) == 2
    assert not (tmp_path / "out.pt").exists()


def test_half_precision_and_wrapped_names_are_read(tmp_path: Path, model: CLIP) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model)
    for prefix in ("_orig_mod.", "module._orig_mod.", "model._orig_mod.module.", "state_dict.model."):
        weights = {prefix + name: value.half() for name, value in model.state_dict().items()}
        other = {"loss.logit_bias": torch.ones(1)} if "model." in prefix else {}
        rewrite(path, lambda c, found={**weights, **other}: c.update(state_dict=found))
        loaded = load_checkpoint(path)[0].state_dict()
        assert all(torch.equal(loaded[name], value.half().float()) for name, value in model.state_dict().items())


def test_missing_and_damaged_files_are_refused(tmp_path: Path, model: CLIP) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(path)
    save_checkpoint(path, model)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged or no PyTorch checkpoint"):
        load_checkpoint(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds a list, not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_every_damage_is_one_kind_of_error(tmp_path: Path, zipped: bool) -> None:
    """A changed byte anywhere: zipfile and the unpickler have a dozen ways to fail."""
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {"weight": torch.arange(4.0)}}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xA5]) + whole[place + 1 :])
        with contextlib.suppress(UserError):
            read_torch_file(path)
            continue
        refused += 1
    assert refused > len(whole) // 10


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code from a checkpoint ran",))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {}, "clip_la": Malicious()}, path)
    with pytest.raises(UserError, match="is damaged or no PyTorch checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(UserError, match="is damaged or no PyTorch checkpoint"):
        load_checkpoint(path)
    assert "ran" not in capsys.readouterr().out


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, model: CLIP) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, samples_seen=1)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save_checkpoint(path, model, samples_seen=lambda: 2)
    assert load_checkpoint(path)[1] == {"samples_seen": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
