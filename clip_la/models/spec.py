"""ModelSpec: all that makes an architecture, in numbers and names. Plain Python, no torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from clip_la.errors import UserError, shown, unknown
from clip_la.models.attention.kinds import attention_kind
from clip_la.models.attention.layout import Layout
from clip_la.models.attention.pattern import AttentionChoice, canonical_pattern, layer_choices

# The means and deviations of OpenAI's CLIP, in RGB, for pixels scaled to [0, 1].
OPENAI_PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
# Size and width of the byte-pair vocabulary of OpenAI's CLIP.
CLIP_VOCAB_SIZE = 49408
CLIP_CONTEXT_LENGTH = 77

ACTIVATIONS = ("gelu", "quick_gelu")
MLP_RATIO = 4

_COUNTS = (
    "embed_dim",
    "image_size",
    "patch_size",
    "image_width",
    "image_layers",
    "image_heads",
    "context_length",
    "vocab_size",
    "text_width",
    "text_layers",
    "text_heads",
)
# Far beyond any model; a number above it is a mistake, and would take for ever to build.
_MOST = 1 << 24
_MOST_LAYERS = 1 << 10
# Of either tower. An image of 16,384 pixels in patches of 16 has so many; the embeddings of its places alone take GiBs.
_MOST_TOKENS = 1 << 20
_NAMES = ("name", "image_attention", "text_attention", "activation", "tokenizer")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A two-tower model. Sizes in pixels, widths in features, lengths in tokens, attention as patterns (pattern.py).

    Raises UserError for numbers that do not fit together. `pixel_mean` and `pixel_std` are RGB for pixels in [0, 1],
    and lie there too; `tokenizer` is a name that clip_la.data.text.tokenizer knows.
    """

    name: str
    embed_dim: int
    image_size: int
    patch_size: int
    image_width: int
    image_layers: int
    image_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    context_length: int = CLIP_CONTEXT_LENGTH
    vocab_size: int = CLIP_VOCAB_SIZE
    image_attention: str = "softmax"
    text_attention: str = "softmax"
    activation: str = "gelu"
    pixel_mean: tuple[float, float, float] = OPENAI_PIXEL_MEAN
    pixel_std: tuple[float, float, float] = OPENAI_PIXEL_STD
    tokenizer: str = "clip"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"model {shown(self.name)}: {name} is {shown(value)}, not a whole number above zero")
            most = _MOST_LAYERS if name.endswith("_layers") else _MOST
            if value > most:
                raise UserError(f"model {shown(self.name)}: {name} is {value}, above the {most} that are allowed")
        for name in _NAMES:
            if not isinstance(getattr(self, name), str):
                raise UserError(f"model {shown(self.name)}: {name} is {shown(getattr(self, name))}, not a name")
        self._check_pixels()
        if self.tokenizer == "clip" and self.vocab_size < CLIP_VOCAB_SIZE:
            raise UserError(
                f"model {shown(self.name)}: vocab_size is {self.vocab_size}, below tokenizer 'clip's {CLIP_VOCAB_SIZE}"
            )
        # Ragged patches at the edge would be seen by no convolution and have no place of their own.
        self._must_divide("patch_size", "image_size")
        self._must_divide("image_heads", "image_width")
        self._must_divide("text_heads", "text_width")
        sizes = f"image_size {self.image_size} with patch_size {self.patch_size}"
        for option, tokens in (
            (sizes, self.num_image_tokens),
            (f"context_length {self.context_length}", self.context_length),
        ):
            if tokens - 1 > _MOST_TOKENS:
                raise UserError(
                    f"model {shown(self.name)}: {option} makes {tokens:,} tokens, above the {_MOST_TOKENS:,} that are"
                    " allowed"
                )
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        for tower in ("image", "text"):
            try:
                pattern = canonical_pattern(getattr(self, f"{tower}_attention"), getattr(self, f"{tower}_layers"))
            except UserError as error:
                raise UserError(f"{tower} tower of {shown(self.name)}: {error}") from None
            # A frozen dataclass is set this way in its own __post_init__.
            object.__setattr__(self, f"{tower}_attention", pattern)
        self._towers_must_suit()

    def _towers_must_suit(self) -> None:
        """Raises UserError for attention that a tower cannot have: heads too odd for rope, no causal form for text."""
        for tower, choices, multiple in (("image", self.image_choices, 4), ("text", self.text_choices, 2)):
            head = getattr(self, f"{tower}_width") // getattr(self, f"{tower}_heads")
            for choice in choices:
                if choice.options.get("rope", "none") != "none" and head % multiple:
                    raise UserError(
                        f"{tower} tower of {shown(self.name)}: '{choice}' turns features, which"
                        f" wants heads of a multiple of {multiple} features; these have {head}"
                    )
                if tower == "text" and not attention_kind(choice.kind).causal:
                    raise UserError(
                        f"text tower of {shown(self.name)}: '{choice.kind}' has no causal form, it is for image"
                        " towers; give text_attention another kind"
                    )

    def _check_pixels(self) -> None:
        for name in ("pixel_mean", "pixel_std"):
            values = getattr(self, name)
            shares = isinstance(values, tuple) and all(type(v) in (int, float) and 0 <= v <= 1 for v in values)
            if not shares or len(values) != 3:
                raise UserError(f"model {shown(self.name)}: {name} is {shown(values)}, not three numbers from 0 to 1")
        if min(self.pixel_std) <= 0:
            raise UserError(
                f"model {shown(self.name)}: pixel_std is {shown(self.pixel_std)}; write deviations above zero"
            )

    def _must_divide(self, divisor: str, number: str) -> None:
        if getattr(self, number) % getattr(self, divisor):
            values = f"{number} {getattr(self, number)} is no multiple of {divisor} {getattr(self, divisor)}"
            raise UserError(f"model {shown(self.name)}: {values}")

    @property
    def num_image_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def image_layout(self) -> Layout:
        """How the image tower's tokens lie: a class token, then the patches by rows."""
        side = self.image_size // self.patch_size
        return Layout(self.num_image_tokens, (side, side), prefix=1)

    @property
    def text_layout(self) -> Layout:
        """How the text tower's tokens lie: a causal sequence."""
        return Layout(self.context_length)

    @property
    def attention(self) -> str:
        """Both towers' attention in one string: the shared one, else image/text."""
        if self.image_attention == self.text_attention:
            return self.image_attention
        return f"{self.image_attention}/{self.text_attention}"

    @property
    def image_choices(self) -> tuple[AttentionChoice, ...]:
        """The attention of each layer of the image tower."""
        return layer_choices(self.image_attention, self.image_layers)

    @property
    def text_choices(self) -> tuple[AttentionChoice, ...]:
        """The attention of each layer of the text tower."""
        return layer_choices(self.text_attention, self.text_layers)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary of numbers, strings and lists, for checkpoints and JSON."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of to_dict; raises UserError for a missing or unknown field."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise unknown("field of a model specification", str(name), fields)
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
        if missing:
            raise UserError(f"the model specification lacks {', '.join(missing)}")
        arguments: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**arguments)
