"""Launches of the causal kernels: heads of one tile; scans over whole heads or splits of them."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clip_la_kernels.ops.linear_attention import causal, causal_backward, causal_columns, configs, short
from clip_la_kernels.ops.linear_attention.bidirectional_launch import BidirectionalPass, Triple
from clip_la_kernels.ops.linear_attention.plan import KernelPlan
from clip_la_kernels.runtime.options import DEN_SUM, L2


class CausalPass:
    """The launches of one pass of a call. masks: (mask, counts up to each token, cu_seqlens), each a tensor, never read
    where absent."""

    def __init__(self, call: KernelPlan, masks: Triple) -> None:
        self.call, self.masks = call, masks

    def forward(self, qkv: Triple, out: Tensor, saved: Sequence[Tensor], save: bool) -> None:
        """Writes `out` and `saved`: states of the splits, z, norms, as `KernelPlan.saved` lists them."""
        call, masks, (q, k, v) = self.call, self.masks, qkv
        opt, scan = call.opt, call.scan
        constants = (opt.a, opt.b, opt.eps)
        if call.short:
            rest = (*masks, *call.strides, call.tokens, call.axis_heads, *constants)
            call.launch("short_forward", short.short_forward, call.heads, (q, k, v, out), rest, one_tile=True)
            return
        started = scan.splits > 1 and not scan.whole
        saves_states = save and scan.splits > 1 and not call.by_columns
        state, aux, z, norms = self._named(saved, out, started or saves_states, save)
        if started:
            BidirectionalPass(call, masks).key_states((k, v), state, aux, scan.splits, scan.size)
            self._scan(state, aux, False)
        columns = configs.column_block(call.width)
        run = scan.splits if scan.whole else 1
        programs = call.heads * (scan.splits // run) * (call.width // columns)
        sizes = (call.tokens, call.axis_heads, scan.splits, scan.size, run)
        rest = (z, norms, state, aux, *masks, *call.strides, *sizes, *constants)
        call.launch(
            "causal_forward", causal.causal_forward, programs, (q, k, v, out), rest, save,
            columns=(call.width, call.width, columns, columns), BV=columns, HAS_STATE=started,
            SAVE_STATE=saves_states and scan.whole, SAVE_NORMS=save and opt.feature_map == L2,
        )  # fmt: skip

    def backward(
        self, qkv: Triple, grad: Tensor, saved: Sequence[Tensor], grads: Triple, needs: tuple[bool, bool]
    ) -> None:  # fmt: skip
        """Writes the gradients that are needed (dq; dk and dv)."""
        call, masks = self.call, self.masks
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
            self._backward_by_columns(qkv, grad, norms, grads, variant, needs)
            return
        many = scan.splits > 1
        state, aux, z, norms = self._named(saved, grad, many, True)
        sizes, programs = (*sizes, scan.splits, scan.size), call.heads * scan.splits
        delta = torch.empty_like(z) if opt.denominator == DEN_SUM else grad
        if needs[0] or opt.denominator == DEN_SUM:
            rest = (z, delta, norms, state, aux, *masks, *strides, *sizes, *constants)
            kernel = causal_backward.causal_query_grad
            call.launch("causal_query_grad", kernel, programs, (q, k, v, grad, dq), rest, variant, HAS_STATE=many)
        if not needs[1]:
            return
        if many:
            state, aux = call.empty(call.state(scan.splits, torch.float32))
            rest = (z, delta, norms, state, aux, *masks[1:], *strides[:6], *sizes, opt.eps)
            kernel = causal_backward.grad_state_split
            call.launch("grad_state_split", kernel, programs, (q, grad), rest, variant)
            self._scan(state, aux, True)
        rest = (z, delta, norms, state, aux, *masks, *strides, *sizes, *constants)
        kernel = causal_backward.causal_key_grad
        call.launch("causal_key_grad", kernel, programs, (q, k, v, grad, dk, dv), rest, variant, HAS_STATE=many)

    def _backward_by_columns(
        self,
        qkv: Triple,
        grad: Tensor,
        norms: Tensor,
        grads: Triple,
        variant: tuple[object, ...],
        needs: tuple[bool, bool],
    ) -> None:
        """dq without the gradient of its norm, then dv, then dk and what dq lacks: so the last launch always runs."""
        call, opt = self.call, self.call.opt
        (q, k, v), (dq, dk, dv) = qkv, grads
        columns = configs.column_block(call.width)
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
            kernel, programs = causal_columns.causal_columns, call.heads * blocks
            call.launch(
                "causal_columns", kernel, programs, (*tiles, dq), rest, (role, variant), columns=widths, BV=columns,
                ROLE=role,
            )  # fmt: skip

    def _named(self, saved: Sequence[Tensor], dummy: Tensor, states: bool, norms: bool) -> Iterator[Tensor]:
        """state, aux, z, norms from the list of `KernelPlan.saved`; `dummy`, which no kernel reads, for those not in
        it."""
        rest = iter(saved)
        present = (states, states, self.call.opt.denominator == DEN_SUM, norms and self.call.opt.feature_map == L2)
        return (next(rest) if there else dummy for there in present)

    def _scan(self, state: Tensor, aux: Tensor, reverse: bool) -> None:
        """Each split's state becomes the sum of those before it (after it if reverse)."""
        call = self.call
        blocks = call.width // configs.COMBINE_ROWS
        call.launch(
            "scan_splits", causal.scan_splits, call.heads * blocks, (), (state, aux, call.scan.splits), reverse,
            ROWS=configs.COMBINE_ROWS, REVERSE=reverse, num_warps=4,
        )  # fmt: skip
