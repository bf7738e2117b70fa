"""Attention as users write it, a plan of a tower's layers. Plain Python.

| plan                            | means                                                                          |
|---------------------------------|--------------------------------------------------------------------------------|
| `linear`                        | this kind in all layers                                                        |
| `linear(a=1,b=0.5)`             | with options; `clip-la models --kinds` lists them                              |
| `linear*11+softmax`             | runs of layers, the first layer first                                          |
| `linear:softmax=5:1`            | five linear, one softmax, over and over; the last round may be cut short       |
| `linear,softmax@7,11`           | linear but for softmax in layers 7 and 11, counted from 0                      |
| `linear,softmax@7,mhla@3,11`    | several kinds at depths of their own                                           |

The canonical spelling of all of them is the sum of runs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

from clip_la.errors import UserError, shown, unknown
from clip_la.models.attention.kinds import attention_kind
from clip_la.models.attention.options import OptionValue

_ITEM = re.compile(r"(?P<kind>\w+)(?:\((?P<options>[^()]*)\))?(?:\*(?P<count>\d{1,6}))?")
# Signs inside brackets belong to options (1e+3; a=1,b=2), not to the plan.
_OUTSIDE = r"(?![^()]*\))"
_PLUS, _COMMA, _COLON, _EQUALS = (re.compile(re.escape(sign) + _OUTSIDE) for sign in "+,:=")
_GRAMMAR = (
    "write KIND, KIND(option=value), runs as in linear*11+softmax, a cycle as in linear:softmax=5:1, or layers by"
    " number, from 0, as in linear,softmax@7,11"
)


@dataclass(frozen=True)
class AttentionChoice:
    """The attention of one layer: a kind and all of its options' values."""

    kind: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)

    def __str__(self) -> str:
        """The shortest spelling: options at their defaults are left out."""
        known = attention_kind(self.kind).options
        changed = [
            f"{name}={value if isinstance(value, str) else format(value, 'g')}"
            for name, value in self.options.items()
            if value != known[name].default
        ]
        return f"{self.kind}({','.join(changed)})" if changed else self.kind


def _parse_options(kind: str, text: str) -> dict[str, OptionValue]:
    known = attention_kind(kind).options
    values: dict[str, OptionValue] = {name: option.default for name, option in known.items()}
    given: set[str] = set()
    for assignment in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise UserError(f"attention '{kind}': '{assignment}' is not option=value")
        if name not in known:
            if not known:
                raise UserError(f"attention '{kind}' has no options, got '{name}'")
            raise unknown(f"option of attention '{kind}'", name, known)
        if name in given:
            raise UserError(f"attention '{kind}': the option '{name}' is given twice; give it once")
        given.add(name)
        try:
            values[name] = known[name].parse(value)
        except UserError as error:
            raise UserError(f"attention '{kind}', option '{name}': {error}") from None
    try:
        attention_kind(kind).check(values)
    except UserError as error:
        raise UserError(f"attention '{kind}': {error}") from None
    return values


class _Plan:
    """One plan while it is read: its text, for errors, and the number of layers that it is for."""

    def __init__(self, pattern: str, num_layers: int) -> None:
        self.pattern = pattern
        self.num_layers = num_layers

    def item(self, text: str) -> tuple[AttentionChoice, int | None]:
        """`KIND(options)*COUNT`; None for no count."""
        match = _ITEM.fullmatch("".join(text.split()))
        if match is None:
            within = "" if text == self.pattern else f" in the attention {shown(self.pattern)}"
            raise UserError(f"cannot read {shown(text)}{within}; {_GRAMMAR}")
        choice = AttentionChoice(match["kind"], _parse_options(match["kind"], match["options"] or ""))
        return choice, int(match["count"]) if match["count"] else None

    def one(self, text: str) -> AttentionChoice:
        """`KIND(options)`."""
        choice, count = self.item(text)
        if count is not None:
            raise UserError(
                f"{shown(text)} in the attention {shown(self.pattern)} has a count, which only sums of runs take;"
                f" {_GRAMMAR}"
            )
        return choice

    def whole(self, text: str) -> int:
        """A whole number of few digits: a longer one would take for ever to lay out."""
        if not text.strip().isdecimal() or len(text) > 6:
            raise UserError(f"{shown(text)} in the attention {shown(self.pattern)} is no whole number; {_GRAMMAR}")
        return int(text)

    def cycle(self) -> tuple[AttentionChoice, ...]:
        """`A:B=5:1`."""
        kinds, lengths = _EQUALS.split(self.pattern, maxsplit=1)
        choices = [self.one(text) for text in _COLON.split(kinds)]
        counts = [self.whole(text) for text in lengths.split(":")]
        if len(choices) != len(counts) or len(choices) < 2 or min(counts) < 1:
            raise UserError(
                f"the cycle {shown(self.pattern)} wants kinds and as many numbers above zero, as in linear:softmax=5:1"
            )
        if sum(counts) > self.num_layers:
            raise UserError(
                f"the cycle {shown(self.pattern)} is {sum(counts)} layers long, this tower has {self.num_layers}"
            )
        once = [choice for choice, count in zip(choices, counts, strict=True) for _ in range(count)]
        return tuple(once[depth % len(once)] for depth in range(self.num_layers))

    def by_depth(self) -> tuple[AttentionChoice, ...]:
        """`A,B@7,11`."""
        base, *rest = _COMMA.split(self.pattern)
        layers = [self.one(base)] * self.num_layers
        current: AttentionChoice | None = None
        taken: set[int] = set()
        for text in rest:
            # "11" of "B@7,11" belongs to the kind before it.
            kind, at, depth_text = text.rpartition("@")
            current = self.one(kind) if at else current
            if current is None:
                raise UserError(f"{shown(text)} in the attention {shown(self.pattern)} is at no layer; {_GRAMMAR}")
            depth = self.whole(depth_text)
            if depth >= self.num_layers:
                last = self.num_layers - 1
                raise UserError(f"the attention {shown(self.pattern)} names layer {depth}, this tower has 0 to {last}")
            if depth in taken:
                raise UserError(f"the attention {shown(self.pattern)} names layer {depth} twice")
            taken.add(depth)
            layers[depth] = current
        return tuple(layers)


def layer_choices(pattern: str, num_layers: int) -> tuple[AttentionChoice, ...]:
    """The attention of each layer, first layer first, of a plan as in the table at the top of this file.

    A single kind without a count stands for all layers; in a sum a kind without a count stands for one.
    Raises UserError when the plan cannot be read, names something unknown, or is not for `num_layers` layers.
    """
    plan = _Plan(pattern, num_layers)
    if _EQUALS.search(pattern):
        return plan.cycle()
    if "@" in pattern:
        return plan.by_depth()
    items = [plan.item(text) for text in _PLUS.split(pattern)]
    if len(items) == 1 and items[0][1] is None:
        return (items[0][0],) * num_layers
    counts = [1 if count is None else count for _, count in items]
    if sum(counts) != num_layers:
        raise UserError(f"the attention {shown(pattern)} is for {sum(counts)} layers, this tower has {num_layers}")
    return tuple(choice for (choice, _), count in zip(items, counts, strict=True) for _ in range(count))


def canonical_pattern(pattern: str, num_layers: int) -> str:
    """The shortest pattern of the same meaning: equal attention has equal names. Raises as layer_choices does."""
    # As text, for equal choices are spelt alike; a plan and its canonical spelling make the same checkpoint.
    runs = [(name, len(list(run))) for name, run in groupby(map(str, layer_choices(pattern, num_layers)))]
    if len(runs) == 1:
        return runs[0][0]
    return "+".join(name if count == 1 else f"{name}*{count}" for name, count in runs)
