"""How the tokens of a tower lie. Plain Python."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Tokens of a tower: `prefix` tokens without a place (the class token), then a grid, or a causal sequence.

    `grid` is (rows, columns) in patches, row by row, or None for a causal sequence of at most `max_tokens` tokens. The
    towers hand it to their attention layers; nothing is inferred from the number of tokens.
    """

    max_tokens: int
    grid: tuple[int, int] | None = None
    prefix: int = 0

    @property
    def causal(self) -> bool:
        """A sequence in which no token sees what follows it."""
        return self.grid is None
