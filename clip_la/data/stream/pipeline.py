"""A ShardStream in a user's own webdataset pipeline: `map`, `select`, `batched` and the rest, still exact on resume.

The position does not travel in the samples, where a user's function could lose it, but beside them. A stage pulls from
the one before it, and what it gives is made of what it has pulled since it last gave something; so the position behind
a result is that of the last sample pulled for it. That is right for every stage that keeps nothing back for later.
webdataset's own `batched` does: it pulls one sample more before it gives a batch. Ours stands in for it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import get_worker_info
from webdataset import DataPipeline, filters
from webdataset.compat import FluidInterface

from clip_la.data.shards.formats import KEY, URL
from clip_la.data.shards.watch import note, rest
from clip_la.data.stream.loader import ShardLoader
from clip_la.data.stream.position import RankState, StreamLayout
from clip_la.data.stream.stream import ShardStream, StreamFailure
from clip_la.errors import UserError, shown

CURSOR = "cursor"
# Of webdataset's stages those that are not exact, and why.
INEXACT = {
    filters.shuffle.f: "holds samples in a buffer; the stream is shuffled already, see block_shards",
    filters.rsample.f: "draws anew each time; select by the sample's key instead",
    filters.slice.f: "counts from where the iteration began",
    filters.unbatched.f: "gives several items for one; do that with what the loader gives",
    filters.unlisted.f: "gives several items for one; do that with what the loader gives",
}
Tracked = tuple[Any, list[Any]]
"""What a stage gives, and the cursors of all that was pulled for it."""


def batched(
    data: Iterable[Any], batchsize: int = 20, collation_fn: Any = filters.default_collation_fn, partial: bool = True
) -> Iterator[Any]:
    """As webdataset's stage of this name, but a batch is given as soon as it is full."""
    batch: list[Any] = []
    for sample in data:
        batch.append(sample)
        if len(batch) == batchsize:
            yield batch if collation_fn is None else collation_fn(batch)
            batch = []
    if batch and partial:
        yield batch if collation_fn is None else collation_fn(batch)


class _TrackedPipeline(DataPipeline, FluidInterface):
    """A pipeline whose first stage is tracked; webdataset's methods append the others, each to a copy."""

    def append(self, stage: Any) -> None:
        """Adds a stage to this pipeline, as `compose` does to a copy.

        Raises:
            UserError: a stage of webdataset's that cannot resume exactly.
        """
        function = getattr(stage, "f", None)
        if function in INEXACT:
            raise UserError(f"{stage} cannot be resumed exactly: it {INEXACT[function]}")
        is_batched = function is filters.batched.f
        super().append(filters.FilterFunction(batched, *stage.args, **stage.kw) if is_batched else stage)

    def with_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as `repeat` is: a stream has no end, and an epoch's would be no place in it."""
        raise UserError("a stream has no epochs: take as many items as you want, such as by itertools.islice")

    repeat = with_epoch

    def _tracked(self, source: Iterable[Tracked]) -> Iterator[Tracked]:
        pulled: list[Any] = []

        def first_stage() -> Iterator[Any]:
            for item, cursors in source:
                pulled.extend(cursors)
                yield item

        items: Iterator[Any] = first_stage()
        for stage in self.pipeline:
            items = self.invoke(stage, items)
        for item in items:
            if not pulled:
                raise UserError(
                    "a stage of the pipeline gave several items for one that it took: there is no place between them "
                    "to resume at; do that with what the loader gives"
                )
            yield item, list(pulled)
            pulled.clear()


class StreamPipeline(_TrackedPipeline):
    """The samples of a stream through stages that run in its loader's workers.

    ```python
    stream = ShardStream(sources, rank=0, world_size=1, workers=2, seed=0)
    pipeline = StreamPipeline(stream).decode("pil").select(is_large).to_tuple("jpg", "txt").map_tuple(resize, tokenize)
    loader = StreamLoader(pipeline).batched(64)
    ```
    webdataset's methods `map`, `map_dict`, `map_tuple`, `select`, `decode`, `rename`, `to_tuple`, `batched`, `listed`
    are exact; those that cannot be, such as `shuffle`, are refused. A function from iterator to iterator given to
    `compose` is exact if it gives what it makes of its input before it asks for more, and depends on nothing else.

    Args:
        stream: without an augmentation it gives raw samples, `{"__key__", "__url__", "jpg": bytes, "txt": bytes, ...}`;
            with one, its batches.
    """

    def __init__(self, stream: ShardStream) -> None:
        super().__init__()
        self.stream = stream

    @property
    def in_memory(self) -> bool:
        """Whether the stream comes from memory; it is then read in this process."""
        return self.stream.in_memory

    @property
    def start(self) -> RankState:
        """Where the stream begins."""
        return self.stream.start

    @property
    def workers(self) -> int:
        """Workers of the stream, processes or not."""
        return self.stream.workers

    def starting_at(self, state: RankState) -> "StreamPipeline":
        """The same pipeline from another position of its stream on."""
        other = self.compose()
        other.stream = self.stream.starting_at(state)
        return other

    def __iter__(self) -> Iterator[Any]:
        """Items with their cursors, for a StreamLoader; a StreamFailure where the stream ends with an error."""
        yield from self._items(self.stream)

    def of_worker(self, worker: int) -> Iterator[Any]:
        """As iterating in that worker of the loader."""
        yield from self._items(self.stream.of_worker(worker))

    def _items(self, samples: Iterable[Any]) -> Iterator[Any]:
        try:
            for item, cursors in self._tracked(self._source(samples)):
                rest()
                yield item, cursors[-1:]
        except (_Failed, UserError) as failed:
            yield StreamFailure(str(failed))

    def _source(self, samples: Iterable[Any]) -> Iterator[Tracked]:
        for item in samples:
            if isinstance(item, StreamFailure):
                # Through the user's stages no message comes but as an error, which they do not catch.
                raise _Failed(item.message)
            cursor = item.pop(CURSOR)
            # The user's functions have the time of a sample, too: a worker that hangs in one is replaced.
            if KEY in item:
                note(item[URL], item[KEY])
            yield item, [cursor]


class _Failed(BaseException):
    """Not an Exception: stages with a handler that ignores errors would catch it."""


class StreamLoader(_TrackedPipeline):
    """The items of a StreamPipeline from its workers, by turns, through further stages in this process; endless.

    Iterating starts at the loader's position. `state_dict()` is the position behind the last item that the iteration
    gave, whatever the workers have made ahead; with `load_state_dict` another loader, also in another process, gives
    the very next one. Copies that `map` and the other methods return have a position of their own.

    Args:
        pipeline: what to read; its stream says how many workers there are.
        start_method: of the worker processes, "fork", "spawn" or "forkserver"; the platform's own if None.
        prefetch: items that each worker makes ahead.
        processes: False reads in this process, in the same order.

    Raises (while iterating):
        UserError: the stream failed, or a worker died or hung.
    """

    def __init__(
        self,
        pipeline: StreamPipeline,
        *,
        start_method: str | None = None,
        prefetch: int = 2,
        processes: bool = True,
    ) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._options: dict[str, Any] = {"start_method": start_method, "prefetch_batches": prefetch}
        self._processes = processes
        self._state = pipeline.start

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise UserError("a StreamLoader starts workers of its own; put stages for them into the StreamPipeline")
        # A copy: an iteration that is still used beside a newer one must not move that one's position.
        state = RankState.from_plain(self._state.to_plain())
        workers = self._pipeline.workers if self._processes else 0
        loader = ShardLoader(self._pipeline.starting_at(state), workers=workers, **self._options)
        for item, cursors in self._tracked(loader):
            for cursor in cursors:
                state.advance({CURSOR: cursor})
            self._state = state
            yield item

    def state_dict(self) -> dict[str, Any]:
        """The position of this rank as numbers, texts and lists, for `torch.save` or JSON."""
        return {"layout": self._layout().to_plain(), "rank": self._pipeline.stream.rank, **self._state.to_plain()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Moves to a position that `state_dict` gave; the next iteration starts there.

        The stages are the caller's to keep as they were; they are not compared.

        Raises:
            UserError: this is no position, or one taken with other shards, seed, ranks, workers or block size; says
                which.
        """
        names = ("layout", "rank", "next_worker", "positions")
        if not isinstance(state_dict, dict) or any(state_dict.get(name) is None for name in names):
            raise UserError(f"not a state_dict of a StreamLoader, which holds {', '.join(names)}")
        if not isinstance(state_dict["layout"], dict):
            raise UserError(f"not a state_dict of a StreamLoader: its layout is {shown(state_dict['layout'])}")
        differences = self._layout().differences(state_dict["layout"])
        if state_dict["rank"] != self._pipeline.stream.rank:
            differences.append(f"rank {state_dict['rank']}, now {self._pipeline.stream.rank}")
        if differences:
            raise UserError(f"the saved place in the data was taken with {'; '.join(differences)}; use the old values")
        self._check_position(state_dict)
        self._state = RankState.from_plain(state_dict)

    def _check_position(self, state_dict: dict[str, Any]) -> None:
        """Raises UserError for numbers that are no position of this stream: found later, they would end a worker."""
        positions = self._pipeline.start.positions

        def is_count(value: Any) -> bool:
            return type(value) is int and value >= 0

        def is_position(value: Any, num_places: int) -> bool:
            if not isinstance(value, list | tuple) or len(value) != 2 or not is_count(value[0]):
                return False
            places = value[1]
            return (
                isinstance(places, list | tuple)
                and len(places) == num_places
                and all(isinstance(p, list | tuple) and len(p) == 2 and all(map(is_count, p)) for p in places)
            )

        given, worker = state_dict["positions"], state_dict["next_worker"]
        if not is_count(worker) or worker >= len(positions):
            wanted = f"next_worker is {shown(worker)}, not a number from 0 to {len(positions) - 1}"
            raise UserError(f"not a state_dict of a StreamLoader: its {wanted}")
        if (
            not isinstance(given, list | tuple)
            or len(given) != len(positions)
            or not all(is_position(one, len(own.places)) for one, own in zip(given, positions, strict=True))
        ):
            wanted = f"{len(positions)} of samples delivered and block and offset in each source"
            raise UserError(f"not a state_dict of a StreamLoader: its positions are {shown(given)}, not {wanted}")

    def _layout(self) -> StreamLayout:
        stream = self._pipeline.stream
        return StreamLayout.of(stream.sources, **stream.order_options)
