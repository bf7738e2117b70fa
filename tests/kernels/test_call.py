"""What calls of one shape share: which launches may overlap, and that their kernels wait."""

import ast
import inspect

import pytest
import torch
from clip_la_kernels.runtime.options import make_options

pytest.importorskip("triton", reason="Triton is not installed")
from clip_la_kernels.ops.linear_attention import (
    bidirectional,
    bidirectional_backward,
    causal,
    causal_backward,
    causal_columns,
    configs,
    short,
)
from clip_la_kernels.ops.linear_attention.plan import KernelPlan
from clip_la_kernels.ops.softmax_attention import blocks, whole

MODULES = (bidirectional, bidirectional_backward, causal, causal_backward, causal_columns, short, blocks, whole)


# What reads and writes no memory: where a program is, and hints to the cache.
HARMLESS = ("seq, h, split = place(tl.program_id(", "seq, h, split = place(tl.num_programs(", "ask_for_rows(")


def kernels_of(module):
    """The functions of a module that the host launches, by name."""
    tree = ast.parse(inspect.getsource(module))
    launched = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [n for n in launched if any(isinstance(d, ast.Name) and d.id == "kernel" for d in n.decorator_list)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_kernel_waits_for_the_one_before_it(module):
    """One that did not would read what is still being written, now and then."""
    found = kernels_of(module)
    assert found
    for node in found:
        body = [ast.unparse(statement) for statement in node.body[1 if ast.get_docstring(node) else 0 :]]
        assert "take_over(PDL)" in body, node.name
        before = body[: body.index("take_over(PDL)")]
        assert all(s.startswith(HARMLESS) for s in before), node.name
        assert "PDL" in [a.arg for a in node.args.args], node.name


@pytest.mark.parametrize(("hopper", "programs", "early"), [(True, 133, True), (True, 132, False), (False, 999, False)])
def test_only_many_programs_are_placed_early(hopper, programs, early, monkeypatch):
    q = torch.empty(1, 300, 2, 64, dtype=torch.bfloat16)
    call = KernelPlan.of_fakes(q, None, None, make_options(1.0, 1.0, "l2", "none", False, None))
    call.hopper, call.sms = hopper, 132
    monkeypatch.setattr("clip_la_kernels.ops.linear_attention.plan.interpreting", lambda: False)
    flags = call.flags("forward_fused", programs)
    assert flags["PDL"] == early
    assert flags.get("launch_pdl", False) == early
    # Only what is placed early, and reads by TMA, asks for rows ahead.
    assert flags["AHEAD"] == 0
    call.tma = True
    assert call.flags("forward_fused", programs)["AHEAD"] == (configs.ROWS_AHEAD if early else 0)
