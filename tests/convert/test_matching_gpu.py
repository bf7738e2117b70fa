"""On a GPU: the matching stages, recorded, have the losses and gradients of the same stages run kernel by kernel, and
give back their memory."""

import gc

import pytest
import torch

from clip_la.convert.cli import main
from clip_la.convert.matching import FeatureMatching, LayerMatching
from clip_la.convert.run import Conversion
from clip_la.runs import RunFolder
from tests.convert.test_matching import END, matching

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BATCH = 16
# Two lengths of captions, each met again after the other has overwritten what its recording keeps.
LENGTHS = (9, 9, 20, 9, 20, 20, 9)


def a_batch(length, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 40000, (BATCH, length), generator=generator)
    tokens[:, -1] = END
    tokens[0, 4:] = torch.tensor([END] + [0] * (length - 5))
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return {"image": images.cuda(), "tokens": tokens.cuda()}


def gradient(task):
    return torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", [LayerMatching, FeatureMatching])
def test_recorded_stages_learn_the_same(kind, tmp_path):
    plans = {"image": "rala+softmax", "text": "hedgehog"}
    plain, recorded = (matching(kind, tmp_path, **plans, compiled=each)[0].cuda() for each in (False, True))
    for task in (plain, recorded):
        task._teacher.model.cuda()
    optimizer = plain.configure_optimizers()
    for seed, length in enumerate(LENGTHS):
        batch, losses = a_batch(length, seed), []
        for task in (plain, recorded):
            # In the trainer's order: the last step's gradients are still there in the forward pass.
            loss = task.training_step(batch, 0)
            task.zero_grad()
            loss.backward()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        assert recorded.parts_of_loss() == pytest.approx(plain.parts_of_loss(), rel=1e-4)
        one, two = gradient(plain), gradient(recorded)
        assert ((two - one).norm() / one.norm()).item() < 1e-3
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(recorded.parameters(), plain.parameters(), strict=True):
                ours.copy_(theirs)
    graphed = [recorded._graphed] if kind is LayerMatching else [recorded._teacher.encoder._graphed]
    graphed += [] if kind is LayerMatching else [recorded._encoder._graphed]
    for towers in graphed:
        # Where a recording fails, passes go on kernel by kernel, and nothing above would have been compared.
        assert {tower: len(each._recordings) for tower, each in towers.items()} == {"image": 1, "text": 2}
    recorded.release()


@pytest.mark.parametrize("is_mixed", [False, True])
def test_layers_of_a_control_have_nothing_to_learn(is_mixed, tmp_path):
    """The teacher's layers run without gradients, the student's with them: by the same kernels, to the bit."""
    task = matching(LayerMatching, tmp_path, compiled=True)[0].cuda()
    task._teacher.model.cuda()
    for seed, length in enumerate(LENGTHS):
        with torch.autocast("cuda", torch.bfloat16, enabled=is_mixed):
            loss = task.training_step(a_batch(length, seed), 0)
        loss.backward()
        assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in task.parameters())
    assert all(each._recordings for each in task._graphed.values())


def test_stages_end_with_their_memory_given_back(teacher, data, tmp_path, monkeypatch):
    train, used = Conversion.train, []

    def watched(self, *args):
        ended = train(self, *args)
        assert {p.device.type for p in self.teacher.model.parameters()} == {"cpu"}
        return ended

    monkeypatch.setattr(Conversion, "train", watched)
    options = [str(teacher), *data, "--accelerator", "gpu", "--attention", "linear_mean"]
    options += ["--layers.samples", "64", "--features.samples", "64"]
    for number in range(3):
        out = tmp_path / str(number)
        assert main([*options, "--out", str(out)]) == 0
        for stage in ("layers", "features"):
            assert RunFolder(out / stage).read_config()["compile"] is True
        gc.collect()
        torch.cuda.empty_cache()
        used.append(torch.cuda.memory_reserved())
    assert used[2] <= used[0]
