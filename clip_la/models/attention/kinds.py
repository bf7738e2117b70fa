"""The attention kinds: names, options, cost, and where the layer is. Plain Python: counting FLOPs needs no torch.

Adding a kind: one entry here and one class in a file beside this one (see base.py); the tests run over KINDS. From
outside the package: `register_attention` in a plugin (clip_la/plugins.py, docs/adding_a_kind.md).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clip_la import plugins
from clip_la.errors import UserError, shown, unknown
from clip_la.models.attention import costs
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.options import AROUND, Number, OneOf, Option, OptionValue, around


@dataclass(frozen=True)
class AttentionKind:
    """One way to compute attention.

    `layer` is a class derived from base.Attention or where one is, as "package.module:Class" (".file:Class" beside
    this file), which is imported when a model is made; `fixed` are constructor arguments that make this kind of that
    class, `own` the options a user may set beside those that stand around every kind (`surroundings`, see
    options.py); `check` raises UserError for values that are wrong together, options of both sorts and `fixed` given.
    `core_flops` and `core_parameters` count the kind itself (costs.py). `causal` says whether a text tower can have it;
    `sums_over_tokens` that the core has no denominator, so that its result grows with the number of tokens (kinds with
    an option `over` or `denominator` say it by that).
    """

    summary: str
    layer: str | type
    core_flops: costs.Cost
    core_parameters: costs.Cost = costs.none
    own: Mapping[str, Option] = field(default_factory=dict)
    surroundings: Mapping[str, Option] = field(default_factory=lambda: AROUND)
    fixed: Mapping[str, OptionValue] = field(default_factory=dict)
    check: Callable[[Mapping[str, OptionValue]], None] = lambda options: None
    causal: bool = True
    sums_over_tokens: bool = False

    @property
    def options(self) -> dict[str, Option]:
        """All options a user may set, by name."""
        return {**self.own, **self.surroundings}

    def flops(self, layout: Layout, width: int, head_width: int, options: Mapping[str, OptionValue]) -> int:
        """Forward FLOPs of one layer for one sample (a multiply-add counts 2), without qkv and output."""
        given = {**self.fixed, **options}
        core = self.core_flops(layout, width, head_width, given)
        return core + costs.Around.flops(layout, width, head_width, given)

    def parameters(self, layout: Layout, width: int, head_width: int, options: Mapping[str, OptionValue]) -> int:
        """Trainable numbers of one layer, without qkv and output."""
        given = {**self.fixed, **options}
        core = self.core_parameters(layout, width, head_width, given)
        return core + costs.Around.parameters(layout, width, head_width, given)

    def grows_with_tokens(self, options: Mapping[str, OptionValue]) -> bool:
        """Does the result grow with the number of tokens: a sum without a denominator, and no norm of heads after it?

        Such a layer is tied to the image size that it was trained at (models/resize.py).
        """
        given = {**self.fixed, **options}
        is_sum = self.sums_over_tokens or "none" in (given.get("denominator"), given.get("over"))
        return is_sum and given.get("norm", "none") == "none"


def _denominator_stays_positive(options: Mapping[str, OptionValue]) -> None:
    a, b = float(options["a"]), float(options["b"])
    if not a > 0 or abs(b) > a:
        raise UserError(f"a={a:g}, b={b:g}: weights a + b cos(q, k) of a normalised sum need a > 0 and |b| <= a")


def _rotated_maps_lose_their_sign(options: Mapping[str, OptionValue]) -> None:
    if options["rope"] != "none":
        raise UserError(
            "rope turns positive features negative, and the sum of weights with them; use kernel(rope=axial)"
        )


def _operator_is_sound(options: Mapping[str, OptionValue]) -> None:
    name, over, a = options["map"], options["over"], float(options.get("a", 0.0))
    if over in ("subtract", "magnitude") and a:
        raise UserError(f"a={a:g} has no part in over={over}; leave it at 0")
    if over in ("sum", "magnitude") and name in ("identity", "l2") and not (name == "l2" and over == "sum" and a >= 1):
        raise UserError(f"over={over} divides by weights that map={name} lets vanish: use over=subtract or another map")
    if over == "sum" and options.get("temperature") == "learned" and name in ("relu", "focused", "l2"):
        raise UserError(f"a learned temperature does not act, or not safely, on map={name} with over=sum")


_AFFINE = {"a": Number(1.0), "b": Number(1.0)}
# The kernels' own defaults: unit vectors give weights of order one, other maps have no scale of their own.
_UNIT_EPS = Number(1e-3, minimum=1e-8)
_MAP_EPS = Number(1e-6, minimum=1e-8)
_TEMPERATURE = {"t": Number(1.0, minimum=1e-3)}
_LEARNED = OneOf("fixed", ("fixed", "learned"))
_MAPS = ("l2", "identity", "elu1", "relu", "exp", "focused", "hedgehog")


def _paper(summary: str, fixed: Mapping[str, OptionValue], **defaults: str) -> AttentionKind:
    """A published attention as settings of the operator, and the surroundings that it has by default."""
    own: dict[str, Option] = {"eps": _MAP_EPS}
    # A temperature would cancel: the focused map is homogeneous, and its weights are divided by their sum.
    own |= {"power": Number(3.0, minimum=1.0)} if fixed["map"] == "focused" else {"temperature": _LEARNED}
    return AttentionKind(
        summary=summary,
        layer=".operator:OperatorAttention",
        core_flops=costs.Operator.flops,
        core_parameters=costs.Operator.parameters,
        own=own,
        surroundings=around(**defaults),
        fixed=fixed,
        check=lambda options: _operator_is_sound({**fixed, **options}),
    )


KINDS: dict[str, AttentionKind] = {
    "softmax": AttentionKind(
        summary="softmax(q k / sqrt D) v: the baseline",
        layer=".softmax:SoftmaxAttention",
        core_flops=costs.quadratic,
        own={"temperature": _LEARNED},
    ),
    "linear": AttentionKind(
        summary="sum of (a + b cos(q, k)) v, no denominator (arXiv 2604.10064, Eq. 7)",
        layer=".linear:LinearAttention",
        core_flops=costs.first_order,
        own=_AFFINE,
        fixed={"denominator": "none"},
    ),
    "linear_mean": AttentionKind(
        summary="mean of (a + b cos(q, k)) v: independent of the length",
        layer=".linear:LinearAttention",
        core_flops=costs.first_order,
        own=_AFFINE,
        fixed={"denominator": "length"},
    ),
    "linear_norm": AttentionKind(
        summary="sum of (a + b cos(q, k)) v over the sum of the weights (arXiv 2510.21956)",
        layer=".linear:LinearAttention",
        core_flops=costs.first_order,
        own={**_AFFINE, "eps": _UNIT_EPS},
        fixed={"denominator": "sum"},
        check=_denominator_stays_positive,
    ),
    "linear_map": AttentionKind(
        summary="phi(q) phi(k) v over the sum of the weights, phi elementwise (arXiv 2006.16236)",
        layer=".linear:LinearAttention",
        core_flops=costs.first_order,
        own={"feature_map": OneOf("elu1", ("elu1", "relu", "exp")), "eps": _MAP_EPS},
        fixed={"denominator": "sum", "a": 0.0, "b": 1.0},
        check=_rotated_maps_lose_their_sign,
    ),
    "fastmax1": AttentionKind(
        summary="weights 1 + x of x = q k / t on standardised q, k, over their sum (arXiv 2402.07901)",
        layer=".fastmax:FastmaxAttention",
        core_flops=costs.first_order,
        own=_TEMPERATURE,
        fixed={"p": 1},
    ),
    "fastmax2": AttentionKind(
        summary="weights 1 + x + x^2 / 2 of x = q k / t on standardised q, k, over their sum (arXiv 2402.07901)",
        layer=".fastmax:FastmaxAttention",
        core_flops=costs.quadratic,
        own=_TEMPERATURE,
        fixed={"p": 2},
    ),
    "kernel": AttentionKind(
        summary="linear attention by its parts: map, over, weight, a, temperature (operator.py)",
        layer=".operator:OperatorAttention",
        core_flops=costs.Operator.flops,
        core_parameters=costs.Operator.parameters,
        own={
            "map": OneOf("elu1", _MAPS),
            "over": OneOf("sum", ("none", "length", "sum", "subtract", "magnitude")),
            "weight": OneOf("none", ("none", "rala")),
            "temperature": _LEARNED,
            "a": Number(0.0, minimum=0.0),
            "power": Number(3.0, minimum=1.0),
            "eps": _MAP_EPS,
        },
        check=_operator_is_sound,
    ),
    "flatten": _paper(
        "focused linear attention: a power of relu(x) at its length, 5x5 convolution (arXiv 2308.00442)",
        {"map": "focused", "over": "sum"},
        conv="5",
    ),
    "hedgehog": _paper(
        "softmax over the features of learned maps of q, k, over the sum of weights (arXiv 2402.04347)",
        {"map": "hedgehog", "over": "sum"},
    ),
    "inline": _paper(
        "q k without a map, its mean over the keys subtracted, static 3x3 convolution (arXiv 2412.06590)",
        {"map": "identity", "over": "subtract"},
        conv="3",
    ),
    "rala": _paper(
        "elu1 with keys weighted by softmax against the mean query, gate, 5x5 convolution (arXiv 2411.07635)",
        {"map": "elu1", "over": "sum", "weight": "rala"},
        conv="5",
        gate="linear",
        rope="axial",
    ),
    "mala": _paper(
        "elu1 that keeps the magnitude of q, rows sum to one, gate, 5x5 convolution (arXiv 2507.00698)",
        {"map": "elu1", "over": "magnitude"},
        conv="5",
        gate="linear",
        rope="axial",
    ),
    "mhla": AttentionKind(
        summary="relu features, states of blocks of tokens mixed by a learned matrix (arXiv 2601.07832)",
        layer=".mhla:MhlaAttention",
        core_flops=costs.Mhla.flops,
        core_parameters=costs.Mhla.parameters,
        # The mixture has a number for each pair of blocks: a million of them at the most.
        own={"blocks": Number(4.0, minimum=1.0, whole=True, maximum=32.0)},
    ),
    "ttt": AttentionKind(
        summary="a small SwiGLU that takes one gradient step on keys and values, image only (arXiv 2512.01643)",
        layer=".ttt:TttAttention",
        core_flops=costs.Ttt.flops,
        core_parameters=costs.Ttt.parameters,
        own={"step": Number(1.0, minimum=0.0)},
        causal=False,
    ),
    "gla": AttentionKind(
        summary="scans with a gate a key feature, both ways on a grid, norm of heads (arXiv 2312.06635, 2405.18425)",
        layer=".scans:GlaAttention",
        core_flops=costs.Gla.flops,
        core_parameters=costs.Gla.parameters,
        surroundings=around(norm="rms"),
        sums_over_tokens=True,
    ),
    "gated_delta": AttentionKind(
        summary="scans by the gated delta rule, both ways on a grid, norm of heads (arXiv 2412.06464)",
        layer=".scans:GatedDeltaAttention",
        core_flops=costs.GatedDelta.flops,
        core_parameters=costs.GatedDelta.parameters,
        surroundings=around(norm="rms"),
        sums_over_tokens=True,
    ),
    "window_linear": AttentionKind(
        summary="softmax in windows that see the class token, beside linear_mean over all tokens",
        layer=".window:WindowLinearAttention",
        core_flops=costs.WindowLinear.flops,
        core_parameters=costs.WindowLinear.parameters,
        own={"window": Number(4.0, minimum=1.0, whole=True)},
    ),
}


def register_attention(name: str, kind: AttentionKind) -> None:
    """Adds an attention kind, for plans such as `name` or `name(option=1)*11+softmax`, in this process.

    Args:
        name: letters, digits and underscores; not one that is taken.
        kind: what it is, see AttentionKind; its options must not be called as those of its surroundings.

    Raises UserError for a name that is taken or cannot be one, and for what is no AttentionKind.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise UserError(f"{shown(name)} cannot be the name of an attention kind: write letters, digits, underscores")
    if name in KINDS:
        raise UserError(f"an attention kind called '{name}' is there already; take another name")
    if not isinstance(kind, AttentionKind):
        raise UserError(f"the attention kind '{name}' is {shown(kind)}, not an AttentionKind(...)")
    if not isinstance(kind.layer, type) and not re.fullmatch(r"[\w.]+:\w+", str(kind.layer)):
        raise UserError(f"attention kind '{name}': layer is {shown(kind.layer)}, not a class or 'package.module:Class'")
    both = sorted(kind.own.keys() & kind.surroundings.keys())
    if both:
        raise UserError(f"attention kind '{name}': its option {both[0]} is one of those around every kind")
    KINDS[name] = kind


def list_attention() -> list[str]:
    """The names of all attention kinds, those of plugins included, sorted. Raises UserError for a plugin that fails."""
    plugins.load_plugins()
    return sorted(KINDS)


def attention_kind(name: str) -> AttentionKind:
    """The kind called `name`; raises UserError with the nearest names for one unknown, or for a plugin that fails."""
    if name not in KINDS:
        plugins.load_plugins()
    if name not in KINDS:
        error = unknown("attention kind", name, KINDS, listed_by="`clip-la models --kinds`")
        raise UserError(f"{error} (a plugin's kind needs {plugins.OPTION} FILE.py or {plugins.VARIABLE})")
    return KINDS[name]
