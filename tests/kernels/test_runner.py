"""Launches through remembered binaries: what the launcher in C is handed, and on a GPU that it computes the same."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clip_la_kernels import linear_attention

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("triton", reason="Triton is not installed")
from checks import DEVICE, GPU, case, ours
from clip_la_kernels.ops.linear_attention import configs
from clip_la_kernels.runtime import launcher as runner


class Binary:
    """A compiled kernel as Triton 3.6 has it: its launcher encodes the maps of every call, then calls the one in C."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, launcher, described):
        tensordesc_meta = described

        def launch(*args):
            return launcher(*args, tensordesc_meta)

        # Where Triton's function finds its encoder: among the globals of its module.
        launch.__globals__["make_tensordesc_arg"] = encode
        self.run = SimpleNamespace(
            launch=launch, launch_cooperative_grid=False, launch_pdl=True, global_scratch_size=0, profile_scratch_size=0
        )


encoded = []


def encode(descriptor, described):
    encoded.append(descriptor.base.data_ptr())
    return [f"map of {described}", *descriptor.shape]


@pytest.fixture
def current_stream(monkeypatch):
    encoded.clear()
    driver = SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda device: f"stream of {device}"))
    monkeypatch.setattr(runner, "driver", driver)


def test_a_map_reads_tiles_of_one_head_unless_told_otherwise():
    tensor = torch.zeros(2, 9, 3, 2, 32)[:, :, 0]
    one, two = runner.tensor_map(tensor, 16, 32), runner.tensor_map(tensor, 8, 16, heads=2)
    assert one.shape == two.shape == [2, 2, 9, 32]
    assert one.strides == two.strides == [9 * 3 * 2 * 32, 32, 3 * 2 * 32, 1]
    assert (one.block_shape, two.block_shape) == ([1, 1, 16, 32], [1, 2, 8, 16])


def patterns(*tensors):
    return [{**vars(runner.tensor_map(tensor, 16, 16)), "base": None} for tensor in tensors]


def test_the_launcher_gets_grid_stream_maps_and_constants_in_order(current_stream):
    calls = []
    x, y = torch.zeros(1, 8, 1, 16), torch.zeros(1, 9, 1, 16)
    binary = Binary(lambda *args: calls.append(args), ["x", "y"])
    direct = runner.Direct(binary, (7, 1, 1), 3, patterns(x, y), (True,))
    for _ in range(2):
        direct((x, y), (0.5, 2))
    head = (7, 1, 1, "stream of 3", "function", False, True, None, None, "metadata", None, None, None)
    assert calls == [(*head, "map of x", 1, 1, 8, 16, "map of y", 1, 1, 9, 16, 0.5, 2, True)] * 2
    assert encoded == [x.data_ptr(), y.data_ptr()]


def test_maps_of_many_addresses_are_forgotten_not_mixed_up(current_stream):
    tensors = [torch.zeros(1, 8, 1, 16) for _ in range(runner.MAX_MAPS + 3)]
    maps = runner.TensorMaps(lambda d, _: [d.base.data_ptr()], ["x"], patterns(tensors[0]))
    for tensor in (*tensors, *tensors):
        assert maps((tensor,)) == [tensor.data_ptr()]
        assert len(maps._known[0]) <= runner.MAX_MAPS


@pytest.mark.parametrize("described", [["x", None], None])
def test_a_launcher_built_otherwise_is_left_to_triton(described, monkeypatch):
    monkeypatch.setattr(runner.triton, "__version__", runner.KNOWN_LAUNCHERS[0] + "0")
    assert runner.Direct.serves(Binary(print, ["x", "y"]), has_maps=True)
    assert not runner.Direct.serves(Binary(print, described), has_maps=True)
    plain = Binary(print, ["x"])
    plain.run.launch = print
    assert runner.Direct.serves(plain, has_maps=False)
    assert not runner.Direct.serves(plain, has_maps=True)
    plain.run.global_scratch_size = 64
    assert not runner.Direct.serves(plain, has_maps=False)


def test_another_release_of_triton_is_left_to_itself(monkeypatch):
    monkeypatch.setattr(runner.triton, "__version__", "99.0.0")
    assert not runner.Direct.serves(Binary(print, ["x"]), has_maps=True)


@pytest.mark.parametrize(("hook", "observed"), [(None, False), (print, True), (SimpleNamespace(calls=[]), False)])
def test_a_profiler_is_noticed(hook, observed, monkeypatch):
    runtime = SimpleNamespace(launch_enter_hook=hook, launch_exit_hook=None)
    monkeypatch.setattr(runner, "knobs", SimpleNamespace(runtime=runtime))
    assert runner.Direct.observed() == observed


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [False, True])
def test_direct_launches_compute_what_tritons_own_do(causal, monkeypatch):
    inputs = [case(2, 130, 3, 64, torch.bfloat16, seed=seed) for seed in range(runner.MAX_MAPS + 2)]

    def results(releases):
        monkeypatch.setattr(runner, "KNOWN_LAUNCHERS", releases)
        # A block of its own makes launchers of its own.
        with configs.forced({}, tma_bytes=0):
            return [ours(lambda x: linear_attention(x, causal=causal), *pair) for pair in inputs]

    side = torch.cuda.Stream(DEVICE)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        direct = results(("3.6.",))
    torch.cuda.synchronize()
    for mine, theirs in zip(direct, results(()), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
