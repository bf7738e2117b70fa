"""Launching one kernel many times at little cost to the host.

Triton's own dispatch looks at every argument of every launch to find the binary, which takes longer than many of these
kernels run. Where nothing that it looks at can change, the binary of the first launch is called directly.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class Launcher:
    """One kernel at one set of shapes, strides, flags.

    kernel: its tiles come first, then `rest`, then the compile-time arguments. blocks: (rows, columns) of each tile if
    tiles are copied by the copy engine, else None: the kernel takes pointers. reuse: are all pointers of all launches
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

    def __call__(self, tiles: Sequence[Tensor], rest: Sequence[Any]) -> None:
        """tiles: (B, N, H, D) each. Launches on the current stream."""
        if self._binary is None:
            self._first(tiles, rest)
        elif self._patterns:
            maps = [_filled(pattern, tensor) for pattern, tensor in zip(self._patterns, tiles, strict=True)]
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


def tensor_map(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A (B, N, H, D) tensor as what the copy engine reads tiles from: a descriptor over (B, H, N, D)."""
    batch, tokens, heads, width = tensor.shape
    sb, sn, sh, sd = tensor.stride()
    return TensorDescriptor(tensor, [batch, heads, tokens, width], [sb, sh, sn, sd], [1, 1, rows, columns])


def _filled(pattern: dict[str, Any], tensor: Tensor) -> TensorDescriptor:
    """A checked descriptor's copy for another tensor of the same shape and strides."""
    descriptor = object.__new__(TensorDescriptor)
    vars(descriptor).update(pattern, base=tensor)
    return descriptor
