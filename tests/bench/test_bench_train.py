"""`bench train` runs real steps of both models and writes what it measured."""

import csv
import json
import re
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from clip_la.bench.train import cases_of, distributed
from clip_la.bench.train_steps import (
    PEER,
    OurStep,
    PeerStep,
    caption_lengths,
    make_batch,
    peer_batch,
    peer_model,
    train_step,
)
from clip_la.cli import main
from clip_la.models.clip import model_from_spec
from clip_la.train.hardware import BUCKET_MIB
from clip_la.train.peak import peak_flops

SMALL = ["bench", "train", "--models", "vit_pico", "--batch-size", "8", "--steps", "2", "--rounds", "1"]


def cases(**changes):
    options = {"batch_size": 8, "micro_batches": 1, "checkpointing": False, "with_peer": True, **changes}
    return cases_of(["vit_pico"], ["softmax", "linear"], None, ["full", "laion"], ["block"], [1, 2], **options)


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Compiling these steps for a processor takes a minute and is not what is tested here."""
    with torch.compiler.set_stance("force_eager"):
        yield


def test_both_models_are_timed_and_the_table_says_so(tmp_path, capsys):
    out = tmp_path / "train.csv"
    options = ["--attention", "linear", "--text", "laion", "--modes", "block", "--out", str(out), "--json"]
    assert main([*SMALL, *options]) in (None, 0)
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    # Who waits for the first row reads what goes on.
    case = "vit_pico 32 px, text laion, b8"
    for who in ("open_clip", "linear, block, groups 1"):
        assert f"{case}: {who}: compiling\n" in said.err
        assert re.search(f"{case}: {who}: started after \\d+ s; timing 1 rounds of 2 steps\n", said.err)
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["provider"] for row in rows] == [line["provider"] for line in lines] == ["open_clip", "block"]
    peer, ours = lines
    assert (peer["attention"], ours["attention"]) == ("softmax", "linear")
    assert ours["image_size"] == 32
    assert ours["ratio_to_open_clip"] == pytest.approx(ours["pairs_per_s"] / peer["pairs_per_s"])
    assert ours["pairs_per_s"] == pytest.approx(8e3 / ours["step_ms"])
    assert ours["start_s"] > 0
    assert ours["mfu"] is None  # of a processor no peak is known


def test_the_peer_has_the_same_sizes():
    spec = cases()[0].spec
    assert sum(p.numel() for p in peer_model(spec).parameters()) == sum(
        p.numel() for p in model_from_spec(spec, seed=0).parameters()
    )


def test_cases_are_all_combinations_with_the_peer_first():
    found = [(c.provider, c.attention, c.text, c.text_groups) for c in cases()]
    assert found[:5] == [
        ("open_clip", "softmax", "full", 1),
        *(("block", attention, "full", groups) for attention in ("softmax", "linear") for groups in (1, 2)),
    ]
    assert len(found) == 10
    assert {c.image_size for c in cases()} == {32}
    assert all(c.provider == "block" for c in cases(with_peer=False))


def test_captions_have_the_lengths_asked_for():
    assert caption_lengths("full", 3, 77, 0).tolist() == [77] * 3
    assert caption_lengths("20", 3, 77, 0).tolist() == [20] * 3
    lengths = caption_lengths("laion", 4096, 77, 0)
    assert 14 <= lengths.median() <= 16
    assert lengths.max() == 77
    case = cases()[-1]
    batch = make_batch(case.spec, case, 1, torch.device("cpu"))
    ends = (batch["tokens"] == 49407).int().argmax(1)
    assert torch.equal(ends + 1, caption_lengths("laion", 8, 32, 1))
    assert not batch["tokens"][torch.arange(batch["tokens"].shape[1]) > ends[:, None]].any()


def test_the_steps_train():
    case = cases(with_peer=False)[0]
    batch = make_batch(case.spec, case, 0, torch.device("cpu"))
    step = OurStep(case)
    optimizer = step.optimizer()
    losses = [train_step(step, optimizer, batch, torch.float32, step.logit_scale).item() for _ in range(12)]
    assert losses[-1] < losses[0] - 0.2


def test_both_models_drop_the_same_share_of_patches():
    case = cases(with_peer=False, patch_dropout=0.5)[0]
    batch = make_batch(case.spec, case, 0, torch.device("cpu"))
    ours, peer = OurStep(case), PeerStep(case)
    seen = []
    note_tokens = lambda block, given: seen.append(given[0].shape[1])  # noqa: E731
    ours.task.model.image.trunk.blocks[0].register_forward_pre_hook(note_tokens)
    peer.model.visual.transformer.register_forward_pre_hook(note_tokens)
    ours(batch)
    peer(peer_batch(batch, case.spec.context_length))
    assert seen == [9, 9]


@pytest.mark.parametrize("reduction", ["float32", "bfloat16"])
def test_gradients_are_sent_as_asked_for_and_the_row_says_so(reduction, tmp_path, capsys):
    options = ["--attention", "linear", "--modes", "eager", "--no-open-clip", "--json"]
    assert main([*SMALL, *options, *(["--reduction", "bfloat16"] if reduction == "bfloat16" else [])]) in (None, 0)
    assert json.loads(capsys.readouterr().out)["reduction"] == reduction
    # A job of one process sends its gradients as one of several does.
    case = cases(with_peer=False, reduction=reduction)[0]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped = distributed(OurStep(case), case)
        wrapped(make_batch(case.spec, case, 0, torch.device("cpu"))).backward()
        peer = distributed(PeerStep(case), replace(case, provider=PEER))
    finally:
        dist.destroy_process_group()
    settings = (wrapped.bucket_bytes_cap, wrapped.gradient_as_bucket_view)
    assert settings == (BUCKET_MIB * 2**20, True) == (128 * 2**20, True)
    assert (peer.bucket_bytes_cap, peer.gradient_as_bucket_view) == (25 * 2**20, False)
    sent = [parameter.grad for parameter in wrapped.parameters() if parameter.grad is not None]
    assert len(sent) > 20
    assert all(torch.equal(grad, grad.bfloat16().float()) for grad in sent) == (reduction == "bfloat16")


def test_utilisation_is_of_the_makers_figure():
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989e12
    assert peak_flops("NVIDIA H100 PCIe", torch.bfloat16) == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", torch.float32) == 156e12
    assert peak_flops("cpu", torch.float32) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--models", "vit_z"], "unknown model 'vit_z'"),
        (["--attention", "linnear"], "did you mean"),
        (["--text", "2"], "--text 2: give full, laion or a number"),
        (["--text", "long"], "--text long"),
        (["--batch-size", "1"], "--batch-size 1 is too small"),
        (["--text", "33"], "--text 33: captions of vit_pico have at most 32 tokens"),
        (["--text-groups", "9"], "--text-groups 9"),
        (["--micro-batches", "0"], "--micro-batches 0"),
        (["--reduction", "float16"], "invalid choice: 'float16'"),
        (["--patch-dropout", "1"], "--patch-dropout 1.0 must be from 0 to below 1"),
        (["--image-size", "30"], "image_size 30 is no multiple of patch_size 8"),
        (["--device", "cpu", "--modes", "graphs"], "graphs needs a GPU"),
    ],
)
def test_wrong_options_are_named(options, says, capsys):
    assert main([*SMALL, *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
