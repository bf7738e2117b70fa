"""Static launch configurations: which structure a call takes and how each kernel is tiled. Nothing is tuned at run
time.

`python -m clip_la_kernels.tune` measures candidates on a GPU and prints a table in this form.
"""

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

# Major compute capability from which tiles go through TMA and launches overlap.
HOPPER = 9
# A causal head of at most this many tokens is one tile; two tiles of a scan beat one of 128 rows.
SHORT_TOKENS = 64
# The widest head that such a tile has room for.
SHORT_WIDTH = 128
# Rows of two tensors that a program, placed while the kernel before still ends, asks the L2 cache for, and
# how many programs per SM do so. Twice the rows crowd out what that kernel needs.
ROWS_AHEAD = 256
PDL_WAVES = 3
# Rows of a state that one program of `combine` or `scan_splits` sums.
COMBINE_ROWS = 16


class Config(NamedTuple):
    """rows: tokens a tile; warps; stages: depth of the software pipeline; registers: most a thread may take (0: no
    limit)."""

    rows: int
    warps: int
    stages: int
    registers: int = 0


# By kernel, padded head width, and whether the denominator is the sum of weights, where that changes the registers.
# Measured on an H100 with Triton 3.6 (bfloat16); SM90_LONG holds what differs beyond LONG_TOKENS.
# fmt: off
SM90 = {
    ("forward_fused", 64, False): Config(64, 4, 3), ("forward_fused", 64, True): Config(64, 4, 4),
    ("backward_fused", 64, False): Config(64, 4, 3), ("backward_fused", 64, True): Config(64, 4, 4),
    ("key_state_split", 64, False): Config(64, 4, 4), ("key_state_split", 64, True): Config(64, 4, 4),
    ("output_split", 64, False): Config(64, 4, 4), ("output_split", 64, True): Config(64, 4, 4),
    ("query_grad_split", 64, False): Config(64, 4, 3, 168), ("query_grad_split", 64, True): Config(64, 4, 3),
    ("key_grad_split", 64, False): Config(64, 4, 3), ("key_grad_split", 64, True): Config(64, 4, 3),
    ("causal_forward", 64, False): Config(64, 4, 3), ("causal_forward", 64, True): Config(64, 4, 3),
    ("causal_query_grad", 64, False): Config(64, 4, 3), ("causal_query_grad", 64, True): Config(64, 4, 2),
    ("causal_key_grad", 64, False): Config(64, 4, 3), ("causal_key_grad", 64, True): Config(64, 4, 2),
    ("causal_forward", 128, False): Config(64, 4, 3), ("causal_forward", 128, True): Config(64, 4, 3),
    ("causal_query_grad", 128, False): Config(64, 8, 3), ("causal_query_grad", 128, True): Config(64, 4, 2),
    ("causal_columns", 128, False): Config(64, 4, 3), ("causal_columns", 128, True): Config(64, 4, 3),
    ("causal_key_grad", 128, False): Config(64, 8, 2), ("causal_key_grad", 128, True): Config(64, 8, 1),
}
LONG_TOKENS = 384
SM90_LONG = {
    ("forward_fused", 64, False): Config(64, 4, 4),
    ("backward_fused", 64, False): Config(64, 4, 4), ("backward_fused", 64, True): Config(64, 4, 3),
}
# Beyond this there are so few heads that each has more of a SM to itself.
VERY_LONG_TOKENS = 2048
SM90_VERY_LONG = {("backward_fused", 64, False): Config(64, 4, 3)}
# fmt: on
# Ampere and Ada have less shared memory and fewer registers to spare for the pipeline.
SM80 = {key: Config(32, 4, 2) for key in SM90}
TABLES = {HOPPER: SM90, 8: SM80}

# Where the table has no entry. Wide heads keep a 128 x 128 state: eight warps.
DEFAULT = {
    16: Config(64, 4, 2),
    32: Config(64, 4, 2),
    64: Config(64, 4, 2),
    128: Config(64, 8, 2),
    256: Config(32, 8, 1),
}

# float32 tiles take twice the room and their products come in three pieces: small tiles, no pipeline.
FLOAT32 = {
    16: Config(64, 4, 1),
    32: Config(64, 4, 1),
    64: Config(32, 4, 1),
    128: Config(16, 8, 1),
    256: Config(16, 8, 1),
}

# Fastmax of degree 2, by kernel and padded head width: rows that a program owns, rows that stream through it, warps,
# stages. Elsewhere POLYNOMIAL_DEFAULT; float32 takes twice the room.
POLYNOMIAL = {
    ("fastmax_forward", 64): (128, 64, 8, 3),
    ("fastmax_query_grad", 64): (64, 64, 4, 3),
    ("fastmax_key_grad", 64): (64, 64, 4, 3),
}
POLYNOMIAL_DEFAULT = (64, 64, 4, 2)
POLYNOMIAL_FLOAT32 = (32, 32, 4, 1)


class Overrides:
    """What the tuner and tests set in place of the tables above and the limits below; empty otherwise.

    configs: by kernel name; plan: by the names that `forced` takes; version: of both, so that launches prepared under
    one setting are not used under another.
    """

    def __init__(self) -> None:
        self.configs: dict[str, Config] = {}
        self.plan: dict[str, int] = {}
        self.version = 0
        self._versions = itertools.count(1)

    @contextmanager
    def forced(self, configs: dict[str, Config], **plan: int) -> Iterator[None]:
        """Inside the block: these configurations by kernel name; plan: splits=, causal_splits=, whole=, columns=,
        short=, multiple=, tma_bytes=. Blocks nest."""
        before = self.configs, self.plan, self.version
        self.configs, self.plan = {**self.configs, **configs}, {**self.plan, **plan}
        self.version = next(self._versions)
        try:
            yield
        finally:
            self.configs, self.plan, self.version = before


overrides = Overrides()
forced = overrides.forced


@functools.lru_cache
def device_numbers(index: int | None) -> tuple[int, int]:
    """(major compute capability, SMs); those of an H100 in the interpreter."""
    if index is None:
        return 9, 132
    properties = torch.cuda.get_device_properties(index)
    return properties.major, properties.multi_processor_count


def config(kernel: str, device: torch.device, width: int, total: bool, dtype: torch.dtype, tokens: int) -> Config:
    """The configuration of one kernel; `total`: is the denominator the sum of weights."""
    if kernel in overrides.configs:
        return overrides.configs[kernel]
    if dtype == torch.float32:
        return FLOAT32[width]
    major, _ = device_numbers(device.index if device.type == "cuda" else None)
    key = kernel, width, total
    if major == HOPPER and tokens > VERY_LONG_TOKENS and key in SM90_VERY_LONG:
        return SM90_VERY_LONG[key]
    if major == HOPPER and tokens > LONG_TOKENS and key in SM90_LONG:
        return SM90_LONG[key]
    return TABLES.get(major, SM80).get(key, DEFAULT[width])


def polynomial(kernel: str, width: int, dtype: torch.dtype, device: torch.device) -> tuple[int, int, int, int]:
    """(rows a program owns, rows that stream by, warps, stages) of a fastmax kernel; "polynomial" overrides all."""
    if "polynomial" in overrides.configs:
        rows, warps, stages, _ = overrides.configs["polynomial"]
        return rows, rows, warps, stages
    if dtype == torch.float32:
        return POLYNOMIAL_FLOAT32
    major, _ = device_numbers(device.index if device.type == "cuda" else None)
    return POLYNOMIAL.get((kernel, width), POLYNOMIAL_DEFAULT) if major == HOPPER else POLYNOMIAL_DEFAULT


# One fused program a head is best wherever heads alone make this many waves over the SMs.
FUSED_WAVES = 1.4
# Tokens a split at least: below, its state (16 KB in float32 at D = 64) costs more than the waves it fills.
SPLIT_TOKENS = 512
# Waves that splits should make: few long programs beat many, which all start from a state of their head's.
WANTED_WAVES = 1.5
# A causal split reads its keys and values twice, so there are only as many as make this many waves.
CAUSAL_WAVES = 2
# Waves that whole heads (times blocks of columns) must make for the causal forward pass to go through them unparted.
SERIAL_WAVES = 0.75
# Columns of v a causal forward program: the state's registers go with it. Blocks of 32 read q and k so often that the
# L2 cache becomes the limit.
CAUSAL_COLUMNS = 64
# Every tile height divides it.
SPLIT_MULTIPLE = 128


class Plan(NamedTuple):
    """A bidirectional head in `splits` of `size` tokens, a program each; splits = 0: one fused program a head."""

    splits: int
    size: int

    @classmethod
    def of(cls, heads: int, tokens: int, device: torch.device) -> "Plan":
        """The structure of a call over `heads` = sequences x heads."""
        _, sms = device_numbers(device.index if device.type == "cuda" else None)
        splits = 0
        if heads < FUSED_WAVES * sms and tokens > SPLIT_TOKENS:
            splits = max(1, min(tokens // SPLIT_TOKENS, round(WANTED_WAVES * sms / heads)))
        splits = limit("splits", splits)
        return cls(splits, split_size(tokens, splits))


class Scan(NamedTuple):
    """A causal head in `splits` of `size` tokens. whole: a program of the forward pass goes through all of them."""

    splits: int
    size: int
    whole: bool

    @classmethod
    def of(cls, heads: int, tokens: int, width: int, device: torch.device) -> "Scan":
        """The structure of a call over `heads` = sequences x heads of this padded width.

        Where whole heads fill the GPU, the forward pass goes through them, reading everything once, and leaves the
        states that the splits of the backward pass start from; else an extra pass over keys and values makes those.
        """
        _, sms = device_numbers(device.index if device.type == "cuda" else None)
        splits = max(1, min(tokens // (2 * SPLIT_TOKENS), CAUSAL_WAVES * sms // heads))
        splits = limit("causal_splits", splits)
        programs = heads * (width // column_block(width))
        whole = bool(limit("whole", programs >= SERIAL_WAVES * sms))
        return cls(splits, split_size(tokens, splits), whole)


def split_size(tokens: int, splits: int) -> int:
    """Tokens a split, a multiple of every tile height in use."""
    if splits < 1:
        return tokens
    size = -(-tokens // splits)
    multiple = limit("multiple", SPLIT_MULTIPLE)
    return -(-size // multiple) * multiple if splits > 1 else size


# Encoding tensor maps can cost the host some microseconds a launch: only tensors from this size on go through TMA.
TMA_LEAST_BYTES = 4 << 20


def limit(name: str, value: int) -> int:
    """A limit of this table, or what `forced` has in its place."""
    return overrides.plan.get(name, value)


def column_block(width: int) -> int:
    """Columns of v that one program of the causal forward kernel computes, of heads of this padded width."""
    return min(width, limit("columns", CAUSAL_COLUMNS))


def precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied: as PyTorch does, exact unless the user allowed TF32."""
    # Asked by backend: without one PyTorch raises once both its ways of setting it have been used.
    return "tf32" if dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
