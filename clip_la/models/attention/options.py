"""The options that attention kinds take, and how their text is read. Plain Python."""

import math
from dataclasses import dataclass

from clip_la.errors import UserError

OptionValue = float | str


@dataclass(frozen=True)
class Number:
    """A numeric option from `minimum` to `maximum`, both allowed; `whole` asks for a whole number."""

    default: float
    minimum: float = -math.inf
    whole: bool = False
    maximum: float = math.inf

    def parse(self, text: str) -> float:
        """Reads the option's value; raises UserError when it is no finite number, too small or too large."""
        try:
            value = float(text)
        except ValueError:
            raise UserError(f"'{text}' is not a number") from None
        kind = "whole" if self.whole else "finite"
        is_fit = math.isfinite(value) and self.minimum <= value <= self.maximum
        if not is_fit or (self.whole and value != int(value)):
            least = f" >= {self.minimum:g}" if self.minimum > -math.inf else ""
            most = f" <= {self.maximum:g}" if self.maximum < math.inf else ""
            raise UserError(f"{text} is not a {kind} number" + " and".join(filter(None, (least, most))))
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


Option = Number | OneOf

# What stands around the attention proper, the same for every kind (see base.py). Defaults change nothing. Names rather
# than truth values: a plan says `gate=sigmoid`, and another gate has room beside it.
AROUND: dict[str, Option] = {
    "conv": OneOf("0", ("0", "3", "5", "dynamic")),
    "gate": OneOf("none", ("none", "sigmoid", "linear")),
    "norm": OneOf("none", ("none", "rms")),
    "rope": OneOf("none", ("none", "axial")),
    "cls": OneOf("same", ("same", "softmax")),
}


def around(**defaults: str) -> dict[str, Option]:
    """AROUND with other defaults."""
    changed: dict[str, Option] = {}
    for name, option in AROUND.items():
        assert isinstance(option, OneOf)
        changed[name] = OneOf(option.parse(defaults.get(name, option.default)), option.choices)
    return changed


AROUND_PLAIN = {name: str(option.default) for name, option in AROUND.items()}
