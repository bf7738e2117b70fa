"""Sparse files in a tar: which pieces of them are stored, and the whole file again.

Forms: old GNU headers (GNU tar manual, "Tar Internals: Storing Sparse Files") and the pax forms 0.0, 0.1 and 1.0.
"""

from dataclasses import dataclass, field

from clip_la.data.shards.tar_headers import BLOCK_BYTES, MAX_DIGITS, BadHeader, decimal, number

# Pieces of one sparse file: no image has as many, and a map could be made to take memory instead of the data.
MAX_PIECES = 1 << 16
# In an old GNU header: four pieces, whether blocks with more of them follow, and the size of the whole file.
OLD_MAP, OLD_MAP_GOES_ON, OLD_REAL_SIZE = slice(386, 482), 482, slice(483, 495)
# In such a block that follows: 21 pieces, and whether yet another one follows.
MAP_BLOCK, MAP_BLOCK_GOES_ON = slice(0, 504), 504
_NUMBER_BYTES = 12


@dataclass
class SparseMap:
    """The stored pieces of a sparse file, each (start, size) in bytes: `size` bytes that belong at `start`.

    All methods raise BadHeader for numbers that make no sense.
    """

    pieces: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def from_numbers(cls, numbers: list[bytes]) -> "SparseMap":
        """Of a list "start, size, start, size, ..." in decimal digits."""
        if len(numbers) % 2 or len(numbers) > 2 * MAX_PIECES:
            raise BadHeader("sparse map")
        values = [decimal(digits) for digits in numbers]
        return cls(list(zip(values[::2], values[1::2], strict=True)))

    @classmethod
    def split_from(cls, data: bytes) -> tuple["SparseMap", bytes]:
        """Pax 1.0: (map, stored bytes) of data that the map precedes, a number a line, filled up to whole blocks."""
        count = data[: MAX_DIGITS + 1].partition(b"\n")[0]
        num = 2 * decimal(count)
        if num > 2 * MAX_PIECES:
            raise BadHeader("sparse map")
        lines = data.split(b"\n", num + 1)
        if len(lines) < num + 2:
            raise BadHeader("sparse map")
        length = len(data) - len(lines[-1])
        return cls.from_numbers(lines[1:-1]), data[length + -length % BLOCK_BYTES :]

    def add_entries(self, entries: bytes) -> None:
        """Adds the pieces of an old GNU header (`OLD_MAP`) or of a block behind it (`MAP_BLOCK`)."""
        fields = [entries[i : i + _NUMBER_BYTES] for i in range(0, len(entries), _NUMBER_BYTES)]
        self.pieces += [(number(start), number(size)) for start, size in zip(fields[::2], fields[1::2], strict=True)]
        if len(self.pieces) > MAX_PIECES:
            raise BadHeader("sparse map")

    def expand(self, stored: bytes, size: int) -> bytes:
        """The whole file of `size` bytes, zeros where nothing is stored.

        Also raises BadHeader for pieces that overlap, lie outside, or need more bytes than are stored.
        """
        parts: list[bytes] = []
        end = taken = 0
        for start, count in self.pieces:
            if not count:
                continue
            if count < 0 or start < end or start + count > size or taken + count > len(stored):
                raise BadHeader("sparse map")
            parts += (bytes(start - end), stored[taken : taken + count])
            end, taken = start + count, taken + count
        return b"".join((*parts, bytes(size - end)))
