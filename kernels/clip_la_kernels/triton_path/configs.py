"""Static launch configurations: which structure a call takes and how each kernel is tiled. Nothing is tuned at run
time.

`python -m clip_la_kernels.tune` measures candidates on a GPU and prints a table in this form.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

# A causal head of at most this many tokens is one tile.
SHORT_TOKENS = 128
# Rows of a state that one program of `combine` or `scan_parts` sums.
COMBINE_ROWS = 16


class Config(NamedTuple):
    """rows: tokens a tile; warps; stages: depth of the software pipeline; registers: most a thread may take (0: no
    limit)."""

    rows: int
    warps: int
    stages: int
    registers: int = 0


# By kernel, padded head width, and whether the denominator is the sum of weights, where that changes the registers.
# Measured on an H200 with Triton 3.6 (bfloat16); SM90_LONG holds what differs beyond LONG_TOKENS.
# fmt: off
SM90 = {
    ("forward_fused", 64, False): Config(64, 4, 3), ("forward_fused", 64, True): Config(64, 4, 3),
    ("backward_fused", 64, False): Config(64, 4, 3, 168), ("backward_fused", 64, True): Config(64, 4, 4),
    ("key_state_part", 64, False): Config(64, 4, 4), ("key_state_part", 64, True): Config(64, 4, 4),
    ("output_part", 64, False): Config(64, 4, 4), ("output_part", 64, True): Config(64, 4, 4),
    ("query_grad_part", 64, False): Config(64, 4, 3, 168), ("query_grad_part", 64, True): Config(64, 4, 3),
    ("key_grad_part", 64, False): Config(64, 4, 3), ("key_grad_part", 64, True): Config(64, 4, 3),
    ("causal_forward", 128, False): Config(64, 4, 2), ("causal_forward", 128, True): Config(64, 4, 2),
    ("causal_query_grad", 128, False): Config(64, 8, 3), ("causal_query_grad", 128, True): Config(64, 4, 2),
    ("causal_key_grad", 128, False): Config(64, 8, 2), ("causal_key_grad", 128, True): Config(64, 8, 1),
}
LONG_TOKENS = 768
SM90_LONG = {
    ("forward_fused", 64, False): Config(64, 4, 4), ("forward_fused", 64, True): Config(64, 4, 4),
    ("backward_fused", 64, False): Config(64, 4, 4),
}
# fmt: on
# Ampere and Ada have less shared memory and fewer registers to spare for the pipeline.
SM80 = {key: Config(32, 4, 2) for key in SM90}
TABLES = {9: SM90, 8: SM80}

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

_overrides: dict[str, Config] = {}
_plan: dict[str, int] = {}


@contextmanager
def forced(configs: dict[str, Config], **plan: int) -> Iterator[None]:
    """For the tuner and tests: these configurations by kernel name; plan: parts=, causal_parts=, columns=, short=,
    multiple=, tma_bytes=."""
    before = dict(_overrides), dict(_plan)
    _overrides.update(configs)
    _plan.update(plan)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before[0])
        _plan.clear()
        _plan.update(before[1])


@functools.lru_cache
def device_numbers(index: int | None) -> tuple[int, int]:
    """(major compute capability, multiprocessors); those of an H100 in the interpreter."""
    if index is None:
        return 9, 132
    properties = torch.cuda.get_device_properties(index)
    return properties.major, properties.multi_processor_count


def config(kernel: str, device: torch.device, width: int, total: bool, dtype: torch.dtype, tokens: int) -> Config:
    """The configuration of one kernel; `total`: is the denominator the sum of weights."""
    if kernel in _overrides:
        return _overrides[kernel]
    if dtype == torch.float32:
        return FLOAT32[width]
    major, _ = device_numbers(device.index if device.type == "cuda" else None)
    if major == 9 and tokens > LONG_TOKENS and (kernel, width, total) in SM90_LONG:
        return SM90_LONG[kernel, width, total]
    return TABLES.get(major, SM80).get((kernel, width, total), DEFAULT[width])


class Plan(NamedTuple):
    """parts: 0 = one fused program a head, else programs a head, `size` tokens each."""

    parts: int
    size: int


# One fused program a head is best wherever heads alone make this many waves over the multiprocessors.
FUSED_WAVES = 2
# Tokens a part at least: below, its state (16 KB in float32 at D = 64) costs more than the waves it fills.
PART_TOKENS = 512
WANTED_WAVES = 6
# A causal part reads its keys and values twice, so there are only as many as make this many waves.
CAUSAL_WAVES = 2
# Columns of v a causal forward program: the state's registers go with it.
CAUSAL_COLUMNS = 64
# Every tile height divides it.
PART_MULTIPLE = 128
WANTED_WAVES = 6


def plan(heads: int, tokens: int, width: int, device: torch.device) -> Plan:
    """The structure of a bidirectional call over `heads` = sequences x heads."""
    _, sms = device_numbers(device.index if device.type == "cuda" else None)
    parts = 0
    if heads < FUSED_WAVES * sms and tokens > PART_TOKENS:
        parts = max(1, min(tokens // PART_TOKENS, WANTED_WAVES * sms // heads))
    parts = _plan.get("parts", parts)
    return Plan(parts, part_size(tokens, parts))


def short_tokens() -> int:
    """Up to how many tokens a causal head is one tile."""
    return _plan.get("short", SHORT_TOKENS)


def causal_parts(heads: int, tokens: int, width: int, device: torch.device) -> int:
    """Programs a head of a causal scan: 1 where heads alone fill the GPU."""
    _, sms = device_numbers(device.index if device.type == "cuda" else None)
    parts = max(1, min(tokens // (2 * PART_TOKENS), CAUSAL_WAVES * sms // heads))
    return _plan.get("causal_parts", parts)


def part_size(tokens: int, parts: int) -> int:
    """Tokens a part, a multiple of every tile height in use."""
    if parts < 1:
        return tokens
    size = -(-tokens // parts)
    multiple = _plan.get("multiple", PART_MULTIPLE)
    return -(-size // multiple) * multiple if parts > 1 else size


# Encoding descriptors costs the host some microseconds a launch: not for tensors that a launch outlasts.
TMA_LEAST_BYTES = 4 << 20


def tma_least_bytes() -> int:
    """From which size of a tensor on kernels use the copy engine."""
    return _plan.get("tma_bytes", TMA_LEAST_BYTES)


def column_block(width: int, device: torch.device) -> int:
    """Columns of v that one program of the causal forward kernel does."""
    return min(width, _plan.get("columns", CAUSAL_COLUMNS))


def precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied: as PyTorch does, exact unless the user allowed TF32."""
    return "tf32" if dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest" else "tf32x3"
