"""The losses against plain loops, and two processes against one."""

import math
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import clip_la.losses
from clip_la.losses import chance_loss, contrastive_loss, sigmoid_loss

BATCH, DIM = 7, 5
IDS = torch.tensor([3, 1, 3, 8, 1, 3, 9])


def features(batch=BATCH, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(batch, DIM, generator=generator, dtype=dtype), dim=1) for _ in range(2)]


def loop_contrastive(images, texts, scale, ids):
    """The definition, one row at a time."""
    total = 0.0
    for rows, columns in ((images, texts), (texts, images)):
        for i in range(len(rows)):
            kept = [j for j in range(len(rows)) if j == i or ids is None or ids[i] != ids[j]]
            denominator = sum(math.exp(scale * float(rows[i] @ columns[j])) for j in kept)
            total += math.log(denominator) - scale * float(rows[i] @ columns[i])
    return total / (2 * len(images))


def loop_sigmoid(images, texts, scale, bias, ids):
    total = 0.0
    for i in range(len(images)):
        for j in range(len(images)):
            if i != j and ids is not None and ids[i] == ids[j]:
                continue
            sign = 1 if i == j else -1
            total += math.log1p(math.exp(-sign * (scale * float(images[i] @ texts[j]) + bias)))
    return total / len(images)


@pytest.mark.parametrize("ids", [None, IDS], ids=["all-negatives", "repeated-captions"])
def test_contrastive_equals_its_definition(ids):
    images, texts = features()
    loss = contrastive_loss(images, texts, torch.tensor(10.0, dtype=torch.float64), ids)
    assert loss.item() == pytest.approx(loop_contrastive(images, texts, 10.0, ids), rel=1e-12)


@pytest.mark.parametrize("ids", [None, IDS], ids=["all-negatives", "repeated-captions"])
def test_sigmoid_equals_its_definition(ids):
    images, texts = features()
    scale, bias = (torch.tensor(x, dtype=torch.float64) for x in (10.0, -2.0))
    loss = sigmoid_loss(images, texts, scale, bias, ids)
    assert loss.item() == pytest.approx(loop_sigmoid(images, texts, 10.0, -2.0, ids), rel=1e-12)


@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
@pytest.mark.parametrize("ids", [None, IDS], ids=["all-negatives", "repeated-captions"])
def test_a_large_batch_goes_by_blocks_with_the_same_result(monkeypatch, ids, loss):
    scalars = [torch.tensor(x, dtype=torch.float64) for x in (3.0, -1.0)]
    leaves = [*features(), *(scalars if loss is sigmoid_loss else scalars[:1])]
    results, flops = [], []
    for tiled_from in (clip_la.losses.TILED_FROM_LOGITS, BATCH * BATCH):
        monkeypatch.setattr(clip_la.losses, "TILED_FROM_LOGITS", tiled_from)
        fresh = [t.detach().requires_grad_() for t in leaves]
        with FlopCounterMode(display=False) as counter:
            value = loss(*fresh, ids)
            results.append((value.detach(), *torch.autograd.grad(value, fresh)))
        flops.append(counter.get_total_flops() / (2 * BATCH * BATCH * DIM))
    for plain, tiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, tiled)
    # Products of all images and texts: the softmax needs one of them once more where no matrix is kept.
    assert flops == ([3, 3] if loss is sigmoid_loss else [3, 4])


def test_gradients_against_finite_differences():
    images, texts = (x.requires_grad_() for x in features(4))
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (5.0, -1.0))
    ids = torch.tensor([2, 7, 2, 1])
    assert torch.autograd.gradcheck(lambda i, t, s: contrastive_loss(i, t, s, ids), (images, texts, scale))
    assert torch.autograd.gradcheck(lambda i, t, s, b: sigmoid_loss(i, t, s, b, ids), (images, texts, scale, bias))


def test_a_model_that_knows_nothing_is_at_ln_batch():
    same = F.normalize(torch.ones(BATCH, DIM), dim=1)
    assert contrastive_loss(same, same, torch.tensor(100.0)).item() == pytest.approx(chance_loss(BATCH), rel=1e-6)


def test_repeated_captions_do_not_push_each_other_away():
    """Two equal captions: neither text's gradient depends on the other's image."""
    images, texts = features(2)
    texts = texts.requires_grad_()
    contrastive_loss(images, texts, torch.tensor(10.0), torch.tensor([4, 4])).backward()
    assert texts.grad.abs().max() == 0
    contrastive_loss(images, texts, torch.tensor(10.0), torch.tensor([4, 5])).backward()
    assert texts.grad.abs().max() > 0


def test_bfloat16_features_under_autocast_give_a_float32_loss():
    images, texts = features(dtype=torch.float32)
    exact = contrastive_loss(images.bfloat16().float(), texts.bfloat16().float(), torch.tensor(100.0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(images.bfloat16(), texts.bfloat16(), torch.tensor(100.0))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def losses_and_gradients(inputs, weight, rows):
    """Both losses on `rows` of linear "towers" that share `weight`, and their gradients to weight, scale and bias."""
    results = []
    for sigmoid in (False, True):
        parameters = [p.clone().requires_grad_() for p in (weight, torch.tensor(7.0), torch.tensor(-2.0))]
        tower, scale, bias = parameters
        images, texts = (F.normalize(x[rows] @ tower, dim=1) for x in inputs)
        if sigmoid:
            loss = sigmoid_loss(images, texts, scale, bias, IDS_OF_TWO_RANKS[rows])
        else:
            loss = contrastive_loss(images, texts, scale, IDS_OF_TWO_RANKS[rows]) + 0 * bias
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in parameters)])
    return results


IDS_OF_TWO_RANKS = torch.tensor([3, 1, 3, 1, 3, 9])


def problem():
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(6, 4, generator=generator) for _ in range(2)]
    return inputs, torch.randn(4, DIM, generator=generator)


def one_rank(init, out, rank):
    """What each of two freshly started processes runs: this file is also their script."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init}", rank=rank, world_size=2)
    results = losses_and_gradients(*problem(), slice(3 * rank, 3 * rank + 3))
    for result in results:
        for value in result:
            dist.all_reduce(value)
            value /= 2
    if rank == 0:
        torch.save(results, out)
    dist.destroy_process_group()


@pytest.mark.parametrize("tiled_from", [clip_la.losses.TILED_FROM_LOGITS, 1], ids=["plain", "tiled"])
def test_two_processes_give_loss_and_gradient_of_the_joint_batch(tmp_path, tiled_from):
    command = [sys.executable, __file__, str(tmp_path / "init"), str(tmp_path / "out.pt")]
    ranks = [subprocess.Popen([*command, str(rank), str(tiled_from)]) for rank in range(2)]
    assert [process.wait(timeout=60) for process in ranks] == [0, 0]
    joint = losses_and_gradients(*problem(), slice(None))
    for name, two, one in zip(("contrastive", "sigmoid"), torch.load(tmp_path / "out.pt"), joint, strict=True):
        for a, b in zip(two, one, strict=True):
            assert (a - b).norm() <= 1e-6 * b.norm(), name


if __name__ == "__main__":
    clip_la.losses.TILED_FROM_LOGITS = int(sys.argv[4])
    one_rank(sys.argv[1], sys.argv[2], int(sys.argv[3]))
