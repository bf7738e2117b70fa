"""The attention kinds: names, options, cost, and where the layer is. Plain Python: counting FLOPs needs no torch.

Adding a kind: one entry here and one class in a file beside this one (see base.py); the tests run over KINDS.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clip_la.errors import UserError, unknown

OptionValue = float | str


@dataclass(frozen=True)
class Number:
    """A numeric option; `minimum` is the smallest value allowed."""

    default: float
    minimum: float = -math.inf

    def parse(self, text: str) -> float:
        """Reads the option's value; raises UserError when it is no finite number or too small."""
        try:
            value = float(text)
        except ValueError:
            raise UserError(f"'{text}' is not a number") from None
        if not math.isfinite(value) or value < self.minimum:
            raise UserError(
                f"{text} is not a finite number" + (f" >= {self.minimum:g}" if self.minimum > -math.inf else "")
            )
        return value


@dataclass(frozen=True)
class OneOf:
    """An option that takes one of some names."""

    default: str
    choices: tuple[str, ...]

    def parse(self, text: str) -> str:
        """Reads the option's value; raises UserError when it is none of the choices."""
        if text not in self.choices:
            raise UserError(f"'{text}' is none of {', '.join(self.choices)}")
        return text


def _no_check(options: Mapping[str, OptionValue]) -> None:
    pass


@dataclass(frozen=True)
class AttentionKind:
    """One way to compute attention.

    `layer` is "file:Class" under clip_la.models.attention, `fixed` are constructor arguments that make this kind of
    that class, `options` those a user may set; `check` raises UserError for values that are wrong together.
    `flops(num_tokens, width, head_width)` counts the forward FLOPs of one layer for one sample (a multiply-add counts
    2), without the projections.
    """

    summary: str
    layer: str
    flops: Callable[[int, int, int], int]
    options: Mapping[str, Number | OneOf] = field(default_factory=dict)
    fixed: Mapping[str, OptionValue] = field(default_factory=dict)
    check: Callable[[Mapping[str, OptionValue]], None] = _no_check


def _quadratic_flops(num_tokens: int, width: int, head_width: int) -> int:
    """Q K^T and the weighted sum of V. Counted in full for causal attention too, as the published figures are."""
    return 4 * num_tokens**2 * width


def _first_order_flops(num_tokens: int, width: int, head_width: int) -> int:
    """K^T V and Q S."""
    return 4 * num_tokens * head_width * width


def _denominator_stays_positive(options: Mapping[str, OptionValue]) -> None:
    a, b = float(options["a"]), float(options["b"])
    if not a > 0 or abs(b) > a:
        raise UserError(f"a={a:g}, b={b:g}: weights a + b cos(q, k) of a normalised sum need a > 0 and |b| <= a")


_AFFINE = {"a": Number(1.0), "b": Number(1.0)}
# The kernels' own defaults: unit vectors give weights of order one, other maps have no scale of their own.
_UNIT_EPS = Number(1e-3, minimum=1e-8)
_MAP_EPS = Number(1e-6, minimum=1e-8)
_TEMPERATURE = {"t": Number(1.0, minimum=1e-3)}

KINDS: dict[str, AttentionKind] = {
    "softmax": AttentionKind(
        summary="softmax(q k / sqrt D) v: the baseline",
        layer="softmax:SoftmaxAttention",
        flops=_quadratic_flops,
    ),
    "linear": AttentionKind(
        summary="sum of (a + b cos(q, k)) v, no denominator (arXiv 2604.10064, Eq. 7)",
        layer="linear:LinearAttention",
        flops=_first_order_flops,
        options=_AFFINE,
        fixed={"denominator": "none"},
    ),
    "linear_mean": AttentionKind(
        summary="mean of (a + b cos(q, k)) v: independent of the length",
        layer="linear:LinearAttention",
        flops=_first_order_flops,
        options=_AFFINE,
        fixed={"denominator": "length"},
    ),
    "linear_norm": AttentionKind(
        summary="sum of (a + b cos(q, k)) v over the sum of the weights (arXiv 2510.21956)",
        layer="linear:LinearAttention",
        flops=_first_order_flops,
        options={**_AFFINE, "eps": _UNIT_EPS},
        fixed={"denominator": "sum"},
        check=_denominator_stays_positive,
    ),
    "linear_map": AttentionKind(
        summary="phi(q) phi(k) v over the sum of the weights, phi elementwise (arXiv 2006.16236)",
        layer="linear:LinearAttention",
        flops=_first_order_flops,
        options={"feature_map": OneOf("elu1", ("elu1", "relu", "exp")), "eps": _MAP_EPS},
        fixed={"denominator": "sum", "a": 0.0, "b": 1.0},
    ),
    "fastmax1": AttentionKind(
        summary="weights 1 + x of x = q k / t on standardised q, k, over their sum (arXiv 2402.07901)",
        layer="fastmax:FastmaxAttention",
        flops=_first_order_flops,
        options=_TEMPERATURE,
        fixed={"p": 1},
    ),
    "fastmax2": AttentionKind(
        summary="weights 1 + x + x^2 / 2 of x = q k / t on standardised q, k, over their sum (arXiv 2402.07901)",
        layer="fastmax:FastmaxAttention",
        flops=_quadratic_flops,
        options=_TEMPERATURE,
        fixed={"p": 2},
    ),
}


def list_attention() -> list[str]:
    """The names of all attention kinds, sorted."""
    return sorted(KINDS)


def attention_kind(name: str) -> AttentionKind:
    """The kind called `name`; raises UserError with the nearest names for an unknown one."""
    if name not in KINDS:
        raise unknown("attention kind", name, KINDS)
    return KINDS[name]
