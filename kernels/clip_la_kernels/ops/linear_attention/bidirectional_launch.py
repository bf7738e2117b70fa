"""Launches of the bidirectional kernels: one fused program a head, or splits of heads with partial states between."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_la_kernels.ops.linear_attention import bidirectional, bidirectional_backward, configs
from clip_la_kernels.ops.linear_attention.plan import KernelPlan
from clip_la_kernels.runtime.options import DEN_SUM

Triple = tuple[Tensor, Tensor, Tensor]


class BidirectionalPass:
    """The launches of one pass of a call. masks: (mask, counts, cu_seqlens), each a tensor, never read where absent."""

    def __init__(self, call: KernelPlan, masks: Triple) -> None:
        self.call, self.masks = call, masks

    def forward(self, qkv: Triple, out: Tensor, saved: Sequence[Tensor], save: bool) -> None:
        """Writes `out` and the state in `saved`."""
        call, masks, (q, k, v) = self.call, self.masks, qkv
        opt, plan = call.opt, call.plan
        if plan.splits == 0:
            state, aux = saved or (out, out)
            rest = (state, aux, *masks, k, v, *call.strides, call.tokens, call.axis_heads, opt.a, opt.b, opt.eps)
            kernel = bidirectional.forward_fused
            call.launch("forward_fused", kernel, call.heads, (q, k, v, out), rest, save, SAVE=save)
            return
        state, aux = saved
        self.key_states((k, v), state, aux, plan.splits, plan.size)
        rest = (
            state,
            aux,
            masks[2],
            *call.strides,
            call.tokens,
            call.axis_heads,
            plan.splits,
            plan.size,
            opt.a,
            opt.eps,
        )
        call.launch("output_split", bidirectional.output_split, call.heads * plan.splits, (q, out), rest)

    def key_states(self, kv: tuple[Tensor, Tensor], state: Tensor, aux: Tensor, splits: int, size: int) -> None:
        """Fills `state` and `aux`: bidirectional, with the scaled state of each head; causal, with the raw one of each
        split but the last, which no other split starts from."""
        call, masks, opt = self.call, self.masks, self.call.opt
        raw = opt.causal or splits > 1
        own = (state, aux) if opt.causal or not raw else call.empty(call.state(splits, torch.float32))
        rest = (*own, *masks, *call.strides, call.tokens, call.axis_heads, splits, size, opt.a, opt.b)
        sums = opt.denominator == DEN_SUM
        call.launch(
            "key_state_split",
            bidirectional.key_state_split,
            call.heads * splits,
            kv,
            rest,
            RAW=raw,
            PAST=opt.causal,
            SUMS=sums,
        )
        if raw and not opt.causal:
            self.combine(own, (state, aux), splits)

    def combine(self, splits_of: Sequence[Tensor], whole: Sequence[Tensor], splits: int) -> None:
        """Scaled states of heads from the raw ones of their splits."""
        call, masks = self.call, self.masks
        rest = (*splits_of, *whole, *masks[1:], call.tokens, call.axis_heads, splits, call.opt.a, call.opt.b)
        blocks = call.width // configs.COMBINE_ROWS
        call.launch(
            "combine", bidirectional.combine, call.heads * blocks, (), rest, ROWS=configs.COMBINE_ROWS, num_warps=4
        )

    def backward(
        self, qkv: Triple, grad: Tensor, saved: Sequence[Tensor], grads: Triple, needs: tuple[bool, bool]
    ) -> None:  # fmt: skip
        """Writes the gradients that are needed (dq; dk and dv)."""
        call, masks = self.call, self.masks
        (q, k, v), (dq, dk, dv), (state, aux) = qkv, grads, saved
        opt, plan, out_strides = call.opt, call.plan, dq.stride()[:3]
        strides = (*call.strides, *grad.stride()[:3], *out_strides)
        variant = (grad.stride(), out_strides, needs)
        sizes = (call.tokens, call.axis_heads)
        if plan.splits == 0:
            rest = (state, aux, *masks, q, grad, *strides, *sizes, opt.a, opt.b, opt.eps)
            kernel = bidirectional_backward.backward_fused
            call.launch(
                "backward_fused",
                kernel,
                call.heads,
                (q, k, v, grad, dq, dk, dv),
                rest,
                variant,
                NEED_Q=needs[0],
                NEED_KV=needs[1],
            )
            return
        programs, raw = call.heads * plan.splits, plan.splits > 1
        own = call.empty(call.state(plan.splits, torch.float32 if raw else call.dtype))
        rest = (state, aux, *own, *masks[1:], *strides, *sizes, *plan, opt.a, opt.b, opt.eps)
        kernel = bidirectional_backward.query_grad_split
        call.launch(
            "query_grad_split",
            kernel,
            programs,
            (q, grad, dq),
            rest,
            variant,
            RAW=raw,
            NEED_Q=needs[0],
            NEED_KV=needs[1],
        )
        if not needs[1]:
            return
        dstate = own
        if raw:
            dstate = call.empty(call.state(1, call.dtype))
            self.combine(own, dstate, plan.splits)
        rest = (masks[0], *dstate, masks[2], *call.strides, *out_strides, *sizes, *plan)
        kernel = bidirectional_backward.key_grad_split
        call.launch("key_grad_split", kernel, programs, (k, v, dk, dv), rest, variant)
