"""The blocks of one source that a stream reads one after another, each in an order of its own."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple, Protocol

from clip_la.data.shards.problems import Problem
from clip_la.data.shards.reader import read_samples
from clip_la.data.stream.order import ShardOrder, Streams


class Block(NamedTuple):
    """The items of a block in their order in the stream, and what was lost while reading it."""

    items: Sequence[Any]
    problems: list[Problem]


class BlockReader(Protocol):
    """One source as one stream sees it."""

    @property
    def per_pass(self) -> int:
        """Blocks in which this stream meets its share of the source once."""

    def load(self, number: int) -> Block:
        """Block `number`, counted from 0 without end."""


class ShardBlockReader:
    """Blocks of raw samples read from shards."""

    def __init__(
        self, order: ShardOrder, streams: Streams, urls: Sequence[str], opener: Callable[[str], IO[bytes]]
    ) -> None:
        self._order = order
        self._streams = streams
        self._urls = urls
        self._opener = opener

    @property
    def per_pass(self) -> int:
        return self._order.pass_blocks(self._streams)

    def load(self, number: int) -> Block:
        samples: list[dict[str, Any]] = []
        problems: list[Problem] = []
        for unit in self._order.block(self._streams, number):
            # All parts of a shard meet its damage; the first one counts it.
            report = problems.append if unit.part == 0 else lambda problem: None
            read = read_samples(self._urls[unit.shard], on_problem=report, opener=self._opener)
            samples += [sample for i, sample in enumerate(read) if i % unit.num_parts == unit.part]
        order = self._order.inside(self._streams, number, len(samples))
        return Block([samples[i] for i in order], problems)


class ReadAhead:
    """The same blocks, each read in the background while the one before it is used; memory holds two at a time."""

    def __init__(self, blocks: BlockReader) -> None:
        self._blocks = blocks
        self._number = -1
        self._result: queue.Queue[Block | BaseException] = queue.Queue(1)

    @property
    def per_pass(self) -> int:
        return self._blocks.per_pass

    def load(self, number: int) -> Block:
        # After a jump, which only the start of a stream is, what was read ahead is of no use.
        if number != self._number:
            self._begin(number)
        block = self._result.get()
        if isinstance(block, BaseException):
            raise block
        self._begin(number + 1)
        return block

    def _begin(self, number: int) -> None:
        self._number = number
        self._result = queue.Queue(1)
        threading.Thread(target=self._read, args=(number, self._result), daemon=True).start()

    def _read(self, number: int, result: "queue.Queue[Block | BaseException]") -> None:
        try:
            result.put(self._blocks.load(number))
        # Whoever asks for this block raises it; perhaps nobody does.
        except BaseException as error:
            result.put(error)


class BlockIterator:
    """A place in the endless sequence of blocks, behind `offset` items of block `number`."""

    def __init__(self, blocks: BlockReader, number: int = 0, offset: int = 0) -> None:
        self.number = number
        self.offset = offset
        self._blocks = blocks
        self._finished = 0

    @property
    def has_passed(self) -> bool:
        """Whether this stream has met its share of the source once since the iteration began."""
        return self._finished >= self._blocks.per_pass

    def items(self) -> Iterator[tuple[Any, list[Problem]]]:
        """The items from here on, without end, each with what was lost since the one before it.

        None follows the last item of a block, so that losses in blocks without any item are reported as well.
        """
        while True:
            items, problems = self._blocks.load(self.number)
            begun = self.offset
            # Losses of a block are reported with its first item, so resuming inside a block does not report them again.
            lost = problems if begun == 0 else []
            for item in items[begun:]:
                self.offset += 1
                yield item, lost
                lost = []
            # Free the old block before reading the next one.
            del items, problems
            item = None
            yield None, lost
            self._finished += begun == 0
            self.number, self.offset = self.number + 1, 0
