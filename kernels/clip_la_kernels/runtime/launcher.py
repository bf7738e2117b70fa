"""Launching one kernel many times at little cost to the host.

Triton's own dispatch looks at every argument of every launch to find the binary, and encodes every tensor map anew,
which takes longer than many of these kernels run. Where nothing that it looks at can change, the binary of the first
launch is called, and under the Triton whose launcher is known here with the maps of addresses seen before.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

# Releases whose launcher in C takes the arguments that `Direct` hands it; others go through Triton's Python.
KNOWN_LAUNCHERS = ("3.6.",)
# Tensor maps remembered for one argument of a kernel; an allocator hands out the same few addresses again and again.
MAX_MAPS = 64


class Launcher:
    """One kernel at one set of shapes, strides, flags.

    kernel: its tiles come first, then `rest`, then the compile-time arguments. blocks: (rows, columns) of each tile if
    tiles are copied by TMA, else None: the kernel takes pointers. reuse: are all pointers of all launches
    aligned to 16 bytes, so that the first launch's binary serves them?
    """

    def __init__(
        self,
        kernel: Any,
        programs: int,
        flags: dict[str, Any],
        blocks: Sequence[tuple[int, int]] | None,
        reuse: bool,
    ) -> None:
        self._kernel, self._grid, self._flags = kernel, (programs, 1, 1), flags
        self._blocks, self._reuse = blocks, reuse
        self._patterns: list[dict[str, Any]] = []
        self._constants: tuple[Any, ...] = ()
        self._binary: Callable[..., None] | None = None
        self._direct: Direct | None = None

    def __call__(self, tiles: Sequence[Tensor], rest: Sequence[Any]) -> None:
        """tiles: (B, N, H, D) each. Launches on the current stream."""
        if self._binary is None:
            self._first(tiles, rest)
        elif self._direct is not None and not Direct.observed():
            self._direct(tiles, rest)
        elif self._patterns:
            maps = [TensorMaps.filled(pattern, tensor) for pattern, tensor in zip(self._patterns, tiles, strict=True)]
            self._binary(*maps, *rest, *self._constants)
        else:
            self._binary(*tiles, *rest, *self._constants)

    def _first(self, tiles: Sequence[Tensor], rest: Sequence[Any]) -> None:
        arguments: Sequence[Any] = tiles
        if self._blocks is not None:
            arguments = [tensor_map(tensor, *block) for tensor, block in zip(tiles, self._blocks, strict=True)]
        binary = self._kernel[self._grid](*arguments, *rest, **self._flags)
        # The interpreter returns nothing.
        if binary is None or not self._reuse:
            return
        names = self._kernel.arg_names[len(tiles) + len(rest) :]
        self._constants = tuple(self._flags[name] for name in names)
        if self._blocks is not None:
            # Without the tensor, which a pattern must not keep alive.
            self._patterns = [{**vars(argument), "base": None} for argument in arguments]
        self._binary = binary[self._grid]
        if Direct.serves(binary, bool(self._patterns)):
            device = (*tiles, *rest)[0].device.index
            self._direct = Direct(binary, self._grid, device, self._patterns, self._constants)


class Direct:
    """The launcher in C of a compiled kernel, called without the Python around it."""

    def __init__(
        self,
        binary: Any,
        grid: Sequence[int],
        device: int,
        patterns: Sequence[dict[str, Any]],
        constants: Sequence[Any],
    ) -> None:
        run = binary.run
        self._launch, self._maps = run.launch, None
        if patterns:
            self._launch, encode, metadata = self.unwrapped(run.launch)
            self._maps = TensorMaps(encode, metadata, patterns)
        self._stream, self._device = driver.active.get_current_stream, device
        no_scratch, no_hooks = (None, None), (None, None, None)
        placement = (run.launch_cooperative_grid, run.launch_pdl)
        self._grid, self._constants = grid, constants
        self._head = (binary.function, *placement, *no_scratch, binary.packed_metadata, *no_hooks)

    def __call__(self, tiles: Sequence[Tensor], rest: Sequence[Any]) -> None:
        arguments = tiles if self._maps is None else self._maps(tiles)
        stream = self._stream(self._device)
        self._launch(*self._grid, stream, *self._head, *arguments, *rest, *self._constants)

    @staticmethod
    def unwrapped(launch: Any) -> tuple[Any, Any, Sequence[Any]]:
        """(launcher in C, encoder of maps, what it wants to know of each map) out of Triton's function around the
        first. Raises KeyError where that is not as in KNOWN_LAUNCHERS."""
        inside = inspect.getclosurevars(launch).nonlocals
        return inside["launcher"], launch.__globals__["make_tensordesc_arg"], inside["tensordesc_meta"]

    @classmethod
    def serves(cls, binary: Any, has_maps: bool) -> bool:
        """Is Triton's launcher one of KNOWN_LAUNCHERS, built as they are, and does the kernel want no scratch
        memory?"""
        run = binary.run if triton.__version__.startswith(KNOWN_LAUNCHERS) else None
        if run is None or run.global_scratch_size or run.profile_scratch_size:
            return False
        try:
            # Without its description a map would be encoded from, and keep alive, the tensor itself.
            return not has_maps or all(cls.unwrapped(run.launch)[2])
        except (KeyError, TypeError):
            return False

    @staticmethod
    def observed() -> bool:
        """Has a profiler hooked launches? This way round Triton's Python would hide them from it."""
        hooks = (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook)
        return any(getattr(hook, "calls", hook) for hook in hooks)


class TensorMaps:
    """The maps of a kernel's tiles as its launcher takes them, remembered by address: all else about them is fixed."""

    def __init__(
        self, encode: Callable[..., list[Any]], metadata: Sequence[Any], patterns: Sequence[dict[str, Any]]
    ) -> None:
        self._encode, self._described = encode, list(zip(patterns, metadata, strict=True))
        self._known: list[dict[int, list[Any]]] = [{} for _ in patterns]

    def __call__(self, tiles: Sequence[Tensor]) -> list[Any]:
        maps: list[Any] = []
        for slot, tensor in enumerate(tiles):
            known, address = self._known[slot], tensor.data_ptr()
            encoded = known.get(address)
            if encoded is None:
                if len(known) >= MAX_MAPS:
                    known.clear()
                pattern, metadata = self._described[slot]
                encoded = known[address] = self._encode(self.filled(pattern, tensor), metadata)
            maps += encoded
        return maps

    @staticmethod
    def filled(pattern: dict[str, Any], tensor: Tensor) -> TensorDescriptor:
        """A checked descriptor's copy for another tensor of the same shape and strides."""
        descriptor = object.__new__(TensorDescriptor)
        vars(descriptor).update(pattern, base=tensor)
        return descriptor


def tensor_map(tensor: Tensor, rows: int, columns: int, heads: int = 1) -> TensorDescriptor:
    """A (B, N, H, D) tensor as what TMA reads tiles of (1, heads, rows, columns) from: a descriptor over
    (B, H, N, D)."""
    by_head = tensor.transpose(1, 2)
    return TensorDescriptor(tensor, [*by_head.shape], [*by_head.stride()], [1, heads, rows, columns])
