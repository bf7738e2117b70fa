"""What all calls of one shape share: structure, compile-time arguments, what is saved for the backward pass,
launchers."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from clip_la_kernels.ops.linear_attention import configs
from clip_la_kernels.runtime.dispatch import interpreting
from clip_la_kernels.runtime.launcher import Launcher
from clip_la_kernels.runtime.options import DEN_NONE, DEN_SUM, IDENTITY, L2, Options

TRITON_DTYPE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
# Shape and dtype of each of several tensors.
Kinds = list[tuple[tuple[int, ...], torch.dtype]]
# TMA wants addresses and strides in multiples of this, and Triton compiles anew for less aligned pointers.
ALIGNMENT = 16
# Warps that issue one product of Hopper's tensor cores together.
WARPGROUP = 4
# Shapes whose launchers are remembered; a training run has a handful.
MAX_CALLS = 256


class Signature(NamedTuple):
    """Everything that decides how a call is computed. strides: of q, k and v alike; sequences: packed ones, or None."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    opt: Options
    masked: bool
    sequences: int | None
    aligned: bool
    precision: str
    version: int


def padded(width: int) -> int:
    """Head width, or tokens of a one-tile head, padded to what tl.dot takes."""
    return max(16, 1 << (width - 1).bit_length())


def is_aligned(*tensors: Tensor | None) -> bool:
    """Do all of these (that are there) start at a multiple of ALIGNMENT bytes?"""
    addresses = 0
    for t in tensors:
        if t is not None:
            addresses |= t.data_ptr()
    return addresses % ALIGNMENT == 0


def mappable(shape: Sequence[int], strides: Sequence[int], size: int) -> bool:
    """Can TMA read a (B, N, H, D) tensor of `size` bytes an element?"""
    return (
        shape[3] * size % ALIGNMENT == 0
        and all(stride > 0 and stride * size % ALIGNMENT == 0 for stride in strides[:3])
        and shape[0] * shape[1] * shape[2] * shape[3] * size >= configs.limit("tma_bytes", configs.TMA_LEAST_BYTES)
    )


class KernelPlan:
    """The static side of a call; its launchers live as long as it does. Training repeats a handful of calls, so `of`
    remembers their plans."""

    _plans: ClassVar[dict[Signature, "KernelPlan"]] = {}

    def __init__(self, signature: Signature) -> None:
        self.signature, self.opt = signature, signature.opt
        batch, self.tokens, self.axis_heads, self.head_width = signature.shape
        self.sequences = batch if signature.sequences is None else signature.sequences
        self.heads = self.sequences * self.axis_heads
        self.rows = batch * self.tokens * self.axis_heads
        self.width = padded(self.head_width)
        self.strides = signature.strides[:3]
        self.device, self.dtype = signature.device, signature.dtype
        major, self.sms = configs.device_numbers(self.device.index if self.device.type == "cuda" else None)
        self.hopper = self.device.type == "cuda" and major >= configs.HOPPER
        self.plan = configs.Plan.of(self.heads, self.tokens, self.device)
        self.scan = configs.Scan.of(self.heads, self.tokens, self.width, self.device)
        longest = configs.limit("short", configs.SHORT_TOKENS)
        self.short = self.opt.causal and self.tokens <= longest and self.width <= configs.SHORT_WIDTH
        self.by_columns = self._goes_by_columns()
        self.tma = self._has_tma()
        self._launchers: dict[Any, Launcher] = {}
        self._saved: dict[bool, Kinds] = {}
        self._readable: dict[tuple[int, ...], bool] = {}

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        counts: Tensor | None,
        cu: Tensor | None,
        opt: Options,
    ) -> "KernelPlan":
        """The (remembered) plan of a call on these tensors; q, k, v (B, N, H, D) share their strides."""
        signature = Signature(
            q.shape, q.stride(), q.dtype, q.device, opt, mask is not None, None if cu is None else cu.shape[0] - 1,
            is_aligned(q, k, v, mask, counts, cu), configs.precision(q.dtype), configs.overrides.version,
        )  # fmt: skip
        plan = cls._plans.get(signature)
        if plan is None:
            if len(cls._plans) >= MAX_CALLS:
                cls._plans.clear()
            plan = cls._plans[signature] = cls(signature)
        return plan

    @classmethod
    def of_fakes(cls, q: Tensor, mask: Tensor | None, cu: Tensor | None, opt: Options) -> "KernelPlan":
        """The plan of a call on tensors without memory, for the shapes of its results alone."""
        sequences, precision = None if cu is None else cu.shape[0] - 1, configs.precision(q.dtype)
        masked = mask is not None
        return cls(Signature(q.shape, q.stride(), q.dtype, q.device, opt, masked, sequences, False, precision, -1))

    def _has_tma(self) -> bool:
        """One dense rectangle a head, on hardware that copies such by itself (or the interpreter, which can too)."""
        s = self.signature
        fits = (self.hopper or interpreting()) and not s.masked and s.sequences is None and s.aligned
        return fits and s.dtype != torch.float32 and mappable(s.shape, s.strides, s.dtype.itemsize)

    def _goes_by_columns(self) -> bool:
        """Does `causal_columns` serve the backward pass: wide heads without denominator, whole ones filling the GPU?"""
        s, opt = self.signature, self.opt
        plain = (
            not s.masked and s.sequences is None and opt.denominator == DEN_NONE and opt.feature_map in (L2, IDENTITY)
        )
        wide = self.width > configs.column_block(self.width)
        return opt.causal and plain and wide and self.scan.whole

    def readable(self, grad: Tensor) -> bool:
        """Can the kernels read this incoming gradient as it lies in memory?"""
        strides = grad.stride()
        fits = self._readable.get(strides)
        if fits is None:
            fits = strides[3] == 1 and (not self.tma or mappable(grad.shape, strides, grad.element_size()))
            self._readable[strides] = fits
        return fits and (not self.signature.aligned or is_aligned(grad))

    def saved(self, save: bool) -> Kinds:
        """Shape and dtype of what the forward pass hands to the backward pass beside its inputs: the states of the
        heads, or of each split of them, with their sums; causal: the raw z ("sum") and the norms of q and k ("l2")."""
        if save not in self._saved:
            self._saved[save] = self._list_saved(save)
        return self._saved[save]

    def _list_saved(self, save: bool) -> Kinds:
        if self.short:
            return []
        if not self.opt.causal:
            wanted = self.plan.splits > 0 or save
            return self.state(1, self.dtype) if wanted else []
        saved = []
        if self.scan.splits > 1 and not self.by_columns and (save or not self.scan.whole):
            saved += self.state(self.scan.splits, torch.float32)
        if self.opt.denominator == DEN_SUM:
            saved.append(((self.rows,), torch.float32))
        if self.opt.feature_map == L2 and save:
            saved.append(((2, self.rows), torch.float32))
        return saved

    def state(self, splits: int, dtype: torch.dtype) -> Kinds:
        """S and (ks, vs) of each split of each head."""
        shape = (self.heads, splits)
        return [((*shape, self.width, self.width), dtype), ((*shape, 2, self.width), torch.float32)]

    def empty(self, kinds: Kinds) -> list[Tensor]:
        return [torch.empty(shape, dtype=dtype, device=self.device) for shape, dtype in kinds]

    def flags(self, kernel: str, programs: int, **more: Any) -> dict[str, Any]:
        """Compile-time arguments and launch options of one kernel launched as so many programs."""
        rows, warps, stages, registers = configs.config(
            kernel, self.device, self.width, self.opt.denominator == DEN_SUM, self.dtype, self.tokens
        )
        extra: dict[str, Any] = {"maxnreg": registers} if registers else {}
        # Few programs, placed while the kernel before ends, would pile up where room comes free first.
        early = self.hopper and not interpreting() and programs > self.sms
        if early:
            extra["launch_pdl"] = True
        # Where one group of warps has the whole tile; the interpreter has no bfloat16 products.
        by_mma = self.dtype == torch.bfloat16 and warps == WARPGROUP and not interpreting()
        return {
            "DT": TRITON_DTYPE[self.dtype], "TMA": self.tma, "D": self.head_width, "DP": self.width, "BL": rows,
            "MAP": self.opt.feature_map, "DEN": self.opt.denominator, "VSUM": self.opt.a != 0,
            "HAS_MASK": self.signature.masked, "VARLEN": self.signature.sequences is not None, "STAGES": stages,
            "BY_MMA": by_mma, "UP": interpreting(), "PDL": early,
            "AHEAD": configs.ROWS_AHEAD if early and self.tma else 0,
            "FIRST": configs.PDL_WAVES * self.sms, "PREC": self.signature.precision,
            "num_warps": warps, "num_stages": stages, **extra, **more,
        }  # fmt: skip

    def _one_tile(self) -> dict[str, int]:
        rows = padded(self.tokens)
        return {"BL": rows, "num_warps": WARPGROUP * (2 if rows * self.width > 64 * 64 else 1), "num_stages": 1}

    def launch(
        self, name: str, kernel: Any, programs: int, tiles: Sequence[Tensor], rest: Sequence[Any],
        variant: Any = None, columns: Sequence[int] | None = None, one_tile: bool = False, **more: Any,
    ) -> None:  # fmt: skip
        """Launches `kernel` with the configuration under `name`.

        variant: what else than the signature the compile-time arguments `more` and the strides of the tiles depend on;
        columns: of each tile, the whole width by default; one_tile: does a tile hold all tokens?
        """
        key = (name, variant)
        launcher = self._launchers.get(key)
        if launcher is None:
            flags = self.flags(name, programs, **more, **(self._one_tile() if one_tile else {}))
            widths = columns or [self.width] * len(tiles)
            blocks = [(flags["BL"], width) for width in widths] if self.tma else None
            wanted = {*kernel.arg_names, "num_warps", "num_stages", "maxnreg"}
            # Only a kernel that waits may be placed early.
            wanted |= {"launch_pdl"} if "PDL" in kernel.arg_names else set()
            known = {name: value for name, value in flags.items() if name in wanted}
            launcher = self._launchers[key] = Launcher(kernel, programs, known, blocks, self.signature.aligned)
        launcher(tiles, rest)
