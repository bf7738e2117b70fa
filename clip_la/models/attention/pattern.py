"""Attention as users write it: `linear`, `linear(a=1,b=0.5)`, or by layers `linear*11+softmax`. Plain Python."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

from clip_la.errors import UserError, shown, unknown
from clip_la.models.attention.kinds import OptionValue, attention_kind

_ITEM = re.compile(r"(?P<kind>\w+)(?:\((?P<options>[^()]*)\))?(?:\*(?P<count>\d{1,6}))?")
# A plus sign inside brackets belongs to a number (1e+3), not to the pattern.
_SEPARATOR = re.compile(r"\+(?![^()]*\))")
_GRAMMAR = "write KIND, KIND(option=value,...) or a sum over layers such as linear*11+softmax"


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
    for assignment in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise UserError(f"attention '{kind}': '{assignment}' is not option=value")
        if name not in known:
            if not known:
                raise UserError(f"attention '{kind}' has no options, got '{name}'")
            raise unknown(f"option of attention '{kind}'", name, known)
        try:
            values[name] = known[name].parse(value)
        except UserError as error:
            raise UserError(f"attention '{kind}', option '{name}': {error}") from None
    try:
        attention_kind(kind).check(values)
    except UserError as error:
        raise UserError(f"attention '{kind}': {error}") from None
    return values


def _parse_item(text: str, pattern: str) -> tuple[AttentionChoice, int | None]:
    match = _ITEM.fullmatch("".join(text.split()))
    if match is None:
        raise UserError(f"cannot read {shown(text)} in the attention {shown(pattern)}; {_GRAMMAR}")
    choice = AttentionChoice(match["kind"], _parse_options(match["kind"], match["options"] or ""))
    return choice, int(match["count"]) if match["count"] else None


def layer_choices(pattern: str, num_layers: int) -> tuple[AttentionChoice, ...]:
    """The attention of each layer, first layer first.

    A single kind without a count stands for all layers; in a sum a kind without a count stands for one.
    Raises UserError when the pattern cannot be read, names something unknown, or is not for `num_layers` layers.
    """
    items = [_parse_item(text, pattern) for text in _SEPARATOR.split(pattern)]
    if len(items) == 1 and items[0][1] is None:
        return (items[0][0],) * num_layers
    counts = [1 if count is None else count for _, count in items]
    if sum(counts) != num_layers:
        raise UserError(f"the attention {shown(pattern)} is for {sum(counts)} layers, this tower has {num_layers}")
    return tuple(choice for (choice, _), count in zip(items, counts, strict=True) for _ in range(count))


def canonical_pattern(pattern: str, num_layers: int) -> str:
    """The shortest pattern of the same meaning: equal attention has equal names. Raises as layer_choices does."""
    runs = [(name, len(list(run))) for name, run in groupby(map(str, layer_choices(pattern, num_layers)))]
    if len(runs) == 1:
        return runs[0][0]
    return "+".join(name if count == 1 else f"{name}*{count}" for name, count in runs)
