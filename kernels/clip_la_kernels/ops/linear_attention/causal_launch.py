"""Launches of the causal kernels: heads of one tile; scans over whole heads or parts of them."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clip_la_kernels.ops.linear_attention import causal, causal_backward, causal_columns, configs, short
from clip_la_kernels.ops.linear_attention.bidirectional_launch import Triple, key_states
from clip_la_kernels.ops.linear_attention.plan import KernelPlan
from clip_la_kernels.runtime.options import DEN_SUM, L2


def forward(call: KernelPlan, qkv: Triple, out: Tensor, saved: Sequence[Tensor], masks: Triple, save: bool) -> None:
    """Writes `out` and `saved`: states of the parts, z, norms, as `KernelPlan.saved` lists them."""
    q, k, v = qkv
    opt, scan = call.opt, call.scan
    constants = (opt.a, opt.b, opt.eps)
    if call.short:
        rest = (*masks, *call.strides, call.tokens, call.axis_heads, *constants)
        call.launch("short_forward", short.short_forward, call.heads, (q, k, v, out), rest, one_tile=True)
        return
    started = scan.parts > 1 and not scan.whole
    parted = save and scan.parts > 1 and not call.by_columns
    state, aux, z, norms = _named(call, saved, out, started or parted, save)
    if started:
        key_states(call, (k, v), state, aux, masks, scan.parts, scan.size)
        _scan(call, state, aux, False)
    columns = configs.column_block(call.width, call.device)
    run = scan.parts if scan.whole else 1
    programs = call.heads * (scan.parts // run) * (call.width // columns)
    sizes = (call.tokens, call.axis_heads, scan.parts, scan.size, run)
    rest = (z, norms, state, aux, *masks, *call.strides, *sizes, *constants)
    call.launch(
        "causal_forward", causal.causal_forward, programs, (q, k, v, out), rest, save,
        columns=(call.width, call.width, columns, columns), BV=columns, HAS_STATE=started,
        SAVE_STATE=parted and scan.whole, SAVE_NORMS=save and opt.feature_map == L2,
    )  # fmt: skip


def backward(
    call: KernelPlan, qkv: Triple, grad: Tensor, saved: Sequence[Tensor], grads: Triple, masks: Triple,
    needs: tuple[bool, bool],
) -> None:  # fmt: skip
    """Writes the gradients that are needed (dq; dk and dv)."""
    (q, k, v), (dq, dk, dv) = qkv, grads
    opt, scan = call.opt, call.scan
    strides = (*call.strides, *grad.stride()[:3], *dq.stride()[:3])
    variant = (grad.stride(), dq.stride())
    sizes: tuple[int, ...] = (call.tokens, call.axis_heads)
    constants = (opt.a, opt.b, opt.eps)
    if call.short:
        tiles, rest = (q, k, v, grad, dq, dk, dv), (*masks, *strides, *sizes, *constants)
        call.launch("short_backward", short.short_backward, call.heads, tiles, rest, variant, one_tile=True)
        return
    if call.by_columns:
        (norms,) = saved or (grad,)
        _backward_by_columns(call, qkv, grad, norms, grads, variant, needs)
        return
    many = scan.parts > 1
    state, aux, z, norms = _named(call, saved, grad, many, True)
    sizes, programs = (*sizes, scan.parts, scan.size), call.heads * scan.parts
    delta = torch.empty_like(z) if opt.denominator == DEN_SUM else grad
    if needs[0] or opt.denominator == DEN_SUM:
        rest = (z, delta, norms, state, aux, *masks, *strides, *sizes, *constants)
        kernel = causal_backward.causal_query_grad
        call.launch("causal_query_grad", kernel, programs, (q, k, v, grad, dq), rest, variant, HAS_STATE=many)
    if not needs[1]:
        return
    if many:
        state, aux = call.empty(call.state(scan.parts, torch.float32))
        rest = (z, delta, norms, state, aux, *masks[1:], *strides[:6], *sizes, opt.eps)
        kernel = causal_backward.grad_state_part
        call.launch("grad_state_part", kernel, programs, (q, grad), rest, variant)
        _scan(call, state, aux, True)
    rest = (z, delta, norms, state, aux, *masks, *strides, *sizes, *constants)
    kernel = causal_backward.causal_key_grad
    call.launch("causal_key_grad", kernel, programs, (q, k, v, grad, dk, dv), rest, variant, HAS_STATE=many)


def _backward_by_columns(
    call: KernelPlan,
    qkv: Triple,
    grad: Tensor,
    norms: Tensor,
    grads: Triple,
    variant: tuple[object, ...],
    needs: tuple[bool, bool],
) -> None:
    """dq but for the gradient of its norm, then dv, then dk and what dq lacks, which the last launch is needed for."""
    (q, k, v), (dq, dk, dv), opt = qkv, grads, call.opt
    columns = configs.column_block(call.width, call.device)
    blocks = call.width // columns
    turn = torch.empty(call.rows * 2 * blocks, dtype=torch.float32, device=call.device)
    own, incoming, out = call.strides, grad.stride()[:3], dq.stride()[:3]
    widths = (call.width, call.width, *(columns,) * 4)
    roles = {
        causal_columns.QUERIES: ((grad, v, k, q, dq), (incoming, own, own, own)),
        causal_columns.VALUES: ((k, q, grad, v, dv), (own, own, incoming, own)),
        causal_columns.KEYS: ((v, grad, q, k, dk), (own, incoming, own, own)),
    }
    wanted = {causal_columns.QUERIES: needs[0], causal_columns.VALUES: needs[1], causal_columns.KEYS: True}
    for role, (tiles, strides) in roles.items():
        if not wanted[role]:
            continue
        rest = (norms, turn, *itertools.chain(*strides), *out, call.tokens, call.axis_heads, opt.a, opt.b)
        call.launch(
            "causal_columns", causal_columns.causal_columns, call.heads * blocks, (*tiles, dq), rest, (role, variant),
            columns=widths, BV=columns, ROLE=role,
        )  # fmt: skip


def _named(call: KernelPlan, saved: Sequence[Tensor], dummy: Tensor, states: bool, norms: bool) -> Iterator[Tensor]:
    """state, aux, z, norms out of `KernelPlan.saved`'s list; what is not there is replaced by something never read."""
    rest = iter(saved)
    present = (states, states, call.opt.denominator == DEN_SUM, norms and call.opt.feature_map == L2)
    return (next(rest) if there else dummy for there in present)


def _scan(call: KernelPlan, state: Tensor, aux: Tensor, reverse: bool) -> None:
    """Each part's state becomes the sum of those before it (after it if reverse)."""
    blocks = call.width // configs.COMBINE_ROWS
    call.launch(
        "scan_parts", causal.scan_parts, call.heads * blocks, (), (state, aux, call.scan.parts), reverse,
        ROWS=configs.COMBINE_ROWS, REVERSE=reverse, num_warps=4,
    )  # fmt: skip
