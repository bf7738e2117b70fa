"""Forward FLOPs (a multiply-add counts 2) and parameters of attention beyond q, k, v and output, by arithmetic.

Plain Python, no torch. `flops` and `parameters` of a kind take the layout of the tokens, the width, the width of a
head, and the options. Causal attention counts in full, as the published figures do: softmax as N^2, a linear kind as
its linear form. N tokens, width C, heads of D features below.
"""

import math
from collections.abc import Callable, Mapping

from clip_la.models.attention.layout import Layout
from clip_la.models.attention.options import OptionValue

Options = Mapping[str, OptionValue]
Cost = Callable[[Layout, int, int, Options], int]

GATE_RANK = 16
SCAN_CHUNK = 64
INVERSE_BASE = 16
# conv=dynamic: the side of its kernel, and by how much its generator narrows the tokens first (Jet-Nemotron's 8).
DYNAMIC_SIDE = 3
DYNAMIC_REDUCTION = 8


class Around:
    """What stands around every kind: convolution, output gate, softmax of the class token, norm, temperature."""

    @staticmethod
    def _taps(layout: Layout, options: Options) -> int:
        conv = options.get("conv", 0)
        side = DYNAMIC_SIDE if conv == "dynamic" else int(conv)
        return side if layout.causal else side * side

    @classmethod
    def flops(cls, layout: Layout, width: int, head: int, options: Options) -> int:
        """2 taps (N - prefix) C, a dynamic kernel's network, 2 N C^2 for the gate, 4 N C a prefix token's softmax."""
        tokens, taps = layout.max_tokens, cls._taps(layout, options)
        flops = 2 * taps * (tokens - layout.prefix) * width
        if options.get("conv") == "dynamic":
            # One kernel an image, from its mean value; one a token in text, where a mean would tell what follows.
            kernels = tokens if layout.causal else 1
            flops += 2 * kernels * dynamic_hidden(width) * (1 + taps) * width
        if options.get("gate", "none") != "none":
            flops += 2 * tokens * width * width
        if options.get("cls") == "softmax":
            flops += 4 * layout.prefix * tokens * width
        return flops

    @classmethod
    def parameters(cls, layout: Layout, width: int, head: int, options: Options) -> int:
        """Weights of the convolution, weights and biases of the gate, gains of the norm, a temperature a head."""
        taps = cls._taps(layout, options)
        parameters = taps * width
        if options.get("conv") == "dynamic":
            parameters += dynamic_hidden(width) * (1 + taps) * width
        if options.get("gate", "none") != "none":
            parameters += width * width + width
        if options.get("norm") == "rms":
            parameters += width
        if options.get("temperature") == "learned":
            parameters += width // head
        return parameters


def dynamic_hidden(width: int) -> int:
    """Features between the two layers that make the kernels of conv=dynamic."""
    return max(width // DYNAMIC_REDUCTION, 1)


def none(layout: Layout, width: int, head: int, options: Options) -> int:
    """No parameters of its own."""
    return 0


def quadratic(layout: Layout, width: int, head: int, options: Options) -> int:
    """Q K^T and the weighted sum of V: 4 N^2 C."""
    return 4 * layout.max_tokens**2 * width


def first_order(layout: Layout, width: int, head: int, options: Options) -> int:
    """K^T V and Q S, S a state of D x D a head: 4 N D C."""
    return 4 * layout.max_tokens * head * width


class Operator:
    """The operator of operator.py: first order; hedgehog maps q and k to twice the features; rala weighs the keys."""

    @staticmethod
    def flops(layout: Layout, width: int, head: int, options: Options) -> int:
        """4 N D C, three times that for hedgehog (maps and 2 D features), 2 N C a feature set for rala's scores."""
        features = 2 if options["map"] == "hedgehog" else 1
        flops = first_order(layout, width, head, options) * (3 if features == 2 else 1)
        # Each key is compared with the mean query.
        return flops + (2 * layout.max_tokens * features * width if options.get("weight") == "rala" else 0)

    @staticmethod
    def parameters(layout: Layout, width: int, head: int, options: Options) -> int:
        """A (head, head) matrix a head for q and for k if the map is hedgehog, a scale a feature if it is focused."""
        return {"hedgehog": 2 * head * width, "focused": width}.get(str(options["map"]), 0)


class Mhla:
    """Blocks of tokens with a state each, mixed by a learned matrix; all pairs of tokens where that is cheaper."""

    @staticmethod
    def blocks(layout: Layout, options: Options) -> tuple[int, int]:
        """(number of blocks without that of the prefix, tokens in one block)."""
        side = int(options["blocks"])
        if layout.grid is None:
            return side * side, math.ceil(layout.max_tokens / (side * side))
        rows, columns = (math.ceil(extent / side) for extent in layout.grid)
        return side * side, rows * columns

    @classmethod
    def is_quadratic(cls, layout: Layout, head: int, options: Options) -> bool:
        """Are the products of all pairs of tokens cheaper than one state a block?"""
        blocks, size = cls.blocks(layout, options)
        return layout.causal or layout.max_tokens**2 <= 2 * blocks * size * head + (blocks + 1) ** 2 * head

    @classmethod
    def flops(cls, layout: Layout, width: int, head: int, options: Options) -> int:
        """Either all pairs, or states of the blocks (padded to one size), their mixture, and reading them."""
        if cls.is_quadratic(layout, head, options):
            return quadratic(layout, width, head, options)
        blocks, size = cls.blocks(layout, options)
        spots = (blocks + (layout.prefix > 0)) * max(size, layout.prefix)
        mixing = 2 * (blocks + (layout.prefix > 0)) ** 2 * (head + 1) * width
        return 4 * spots * head * width + 2 * spots * width + mixing

    @classmethod
    def parameters(cls, layout: Layout, width: int, head: int, options: Options) -> int:
        """The mixing matrix, a row and a column more where there is a prefix."""
        blocks = cls.blocks(layout, options)[0] + (layout.prefix > 0)
        return blocks * blocks


class Ttt:
    """A network of two (D, D) matrices a head that takes one gradient step."""

    @staticmethod
    def flops(layout: Layout, width: int, head: int, options: Options) -> int:
        """Two products of k, two gradients, two products of q, each 2 N D C."""
        return 12 * layout.max_tokens * head * width

    @staticmethod
    def parameters(layout: Layout, width: int, head: int, options: Options) -> int:
        """Two (head, head) matrices a head."""
        return 2 * head * width


def scan_chunk(tokens: int) -> tuple[int, int]:
    """(number of chunks, tokens in one): equal chunks of at most SCAN_CHUNK."""
    count = math.ceil(tokens / SCAN_CHUNK)
    return count, math.ceil(tokens / max(count, 1))


class _Scan:
    """What both scans share: directions, and the prefix, which takes no part in them."""

    @staticmethod
    def directions(layout: Layout) -> int:
        return 1 if layout.causal else 2

    @staticmethod
    def prefix_products(layout: Layout, width: int) -> int:
        """What a prefix token reads of all tokens, and all others of it."""
        others = layout.max_tokens - layout.prefix
        return 4 * layout.prefix * (layout.max_tokens + others) * width if layout.prefix else 0


class Gla(_Scan):
    """Gated linear attention in chunks: products within a chunk, a state between chunks."""

    @classmethod
    def flops(cls, layout: Layout, width: int, head: int, options: Options) -> int:
        """Products within chunks and, for more than one chunk, with the states between them; the gates' network."""
        count, size = scan_chunk(layout.max_tokens - layout.prefix)
        one = 4 * count * size * size * width
        if count > 1:
            one += 4 * count * size * head * width
        directions = cls.directions(layout)
        gates = 2 * (layout.max_tokens - layout.prefix) * GATE_RANK * (width + directions * width)
        return directions * one + gates + cls.prefix_products(layout, width)

    @classmethod
    def parameters(cls, layout: Layout, width: int, head: int, options: Options) -> int:
        """A low-rank network from a token to a gate a key feature and direction, with a bias at its end."""
        return GATE_RANK * width + cls.directions(layout) * width * (GATE_RANK + 1)


class GatedDelta(_Scan):
    """The gated delta rule in chunks: as Gla, and a triangular system of equations a chunk and head."""

    @classmethod
    def flops(cls, layout: Layout, width: int, head: int, options: Options) -> int:
        """As Gla, with the products among keys, the inverse of the matrix, and its product with the values."""
        count, size = scan_chunk(layout.max_tokens - layout.prefix)
        heads = width // head
        # The inverse of a unit lower triangular matrix as unit_lower_inverse makes it: products of powers of the
        # diagonal blocks, blocks of twice the size from pairs, and one step of Newton.
        padded = INVERSE_BASE
        while padded < size:
            padded *= 2
        inverse = (padded // INVERSE_BASE) * 6 * 2 * INVERSE_BASE**3
        block = INVERSE_BASE
        while block < padded:
            inverse += (padded // (2 * block)) * 2 * 2 * block**3
            block *= 2
        inverse += 2 * 2 * size**3
        one = 6 * count * size * size * width + count * heads * inverse + 2 * count * size * size * width
        if count > 1:
            one += 6 * count * size * head * width
        directions = cls.directions(layout)
        gates = 2 * (layout.max_tokens - layout.prefix) * width * 2 * directions * heads
        return directions * one + gates + cls.prefix_products(layout, width)

    @classmethod
    def parameters(cls, layout: Layout, width: int, head: int, options: Options) -> int:
        """From a token to a decay and a step a head and direction, with biases."""
        return (width + 1) * 2 * cls.directions(layout) * (width // head)


class WindowLinear:
    """Softmax in windows beside first-order attention over all tokens."""

    @staticmethod
    def flops(layout: Layout, width: int, head: int, options: Options) -> int:
        """First order, and softmax in windows of side^2 tokens, or of all there are, that also see the prefix."""
        side = int(options["window"])
        if layout.grid is None:
            size = min(side**2, layout.max_tokens)
            windows = math.ceil(layout.max_tokens / size)
        else:
            sides = [min(side, extent) for extent in layout.grid]
            size = math.prod(sides)
            windows = math.prod(math.ceil(extent / side) for extent in layout.grid)
        local = 4 * windows * size * (size + layout.prefix) * width
        reading = 4 * layout.prefix * layout.max_tokens * width
        return first_order(layout, width, head, options) + local + reading

    @staticmethod
    def parameters(layout: Layout, width: int, head: int, options: Options) -> int:
        """The share of the window, one number a head."""
        return width // head
