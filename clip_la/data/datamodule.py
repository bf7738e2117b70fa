"""`ShardDataModule`: the stream as PyTorch Lightning wants it, its position in every checkpoint."""

from collections import Counter
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from clip_la.data.images.augment import Augmentation
from clip_la.data.images.limits import Limits
from clip_la.data.shards.sources import ShardOpener, expand_urls, place_of
from clip_la.data.shards.watch import set_sample_seconds
from clip_la.data.stream.device import DeviceDecoder
from clip_la.data.stream.encoded import DEVICE_DECODE_FRACTION
from clip_la.data.stream.in_memory import DEFAULT_POOL_GB
from clip_la.data.stream.loader import ShardLoader
from clip_la.data.stream.position import StreamLayout, choose_state
from clip_la.data.stream.sample_iterator import counts
from clip_la.data.stream.sample_log import Audit
from clip_la.data.stream.stream import Batch, RankState, ShardStream, WeightedSource
from clip_la.data.text.captions import Captions
from clip_la.errors import UserError


class ShardDataModule(pl.LightningDataModule):
    """Endless training batches from webdataset shards, resumed to the very next sample.

    Args:
        shards: paths, brace ranges ('/data/{00000..00099}.tar'), globs, folders, s3://, gs:// or http(s):// addresses,
            or 'pipe:COMMAND'; a list of these is read as one source, or as one source each when `weights` are given.
        batch_size: samples in a step over all processes together.
        weights: how often samples are drawn from each entry of `shards`, relative to the others.
        workers: loader processes of each rank; 0 reads in the training process.
        seed: of the order, the choice of captions and the augmentation.
        image_size: side of the pictures given to the model, in pixels.
        context_length: longest caption, in tokens; longer ones are cut.
        tokenizer: name of the tokenizer.
        caption_fields: where captions are: part names ('txt') or keys of the JSON part ('json.caption').
        caption_weights: probabilities of the caption fields; equal when left out.
        cache: 'memory' decodes a small corpus once, in each process of the run, and makes batches by tensor
            operations, from the GPU's memory if they take no more than a quarter of it; 'none' streams. No loader
            processes are started then, though the order of the samples still follows from `workers`.
        cache_gb: GiB of decoded pixels that cache 'memory' may take in each process of the run.
        decode: where JPEGs are decoded: 'cpu' by the workers; 'gpu' by nvJPEG, for workers that cannot keep up;
            'hybrid' two thirds by nvJPEG and the others by the workers.
        block_shards: shards a worker reads and shuffles at a time; also what resuming has to read again.
        replacement: draw shards independently instead of each once before any comes again.
        min_crop_area: least share of a picture's area that the random crop keeps; 1 takes the centre square.
        flip: mirror half of the pictures left to right; wrong for captions that say left or right.
        background: what shows through transparent pictures: 'white', or a 'random' colour each time.
        jitter: largest relative change of brightness, contrast and saturation.
        min_side_px: pictures with a shorter side are skipped.
        max_aspect: pictures longer than this many times their width, or wider, are skipped.
        max_pixels: larger pictures are skipped before they are decoded.
        bad_share_limit: the run stops when a larger share of the samples cannot be used.
        start_method: how loader processes start; the platform's way when left out. The order is the same.
        prefetch_batches: batches that each worker makes ahead.
        read_ahead: let each worker read its next block of shards in the background, at the price of holding two.
        retries: how often a remote shard or a pipe that breaks is tried again, with longer and longer waits; reading
            goes on at the byte where it broke.
        local_cache: folder in which remote shards are kept once read, and what cache 'memory' decodes of local ones:
            one process decodes, the others and later runs share its file.
        local_cache_gb: size in GiB beyond which the least recently used shards leave that folder.
        sample_seconds: samples that take longer to read and decode are skipped; a loader process that cannot be
            interrupted then ends the run. Null: 60.
        audit: folder for a record of every sample trained on or skipped, one file a rank.
        changed_layout: what to do when a checkpoint's position was taken with other shards, ranks, workers or order
            options: 'stop', or 'reshuffle' to go on in a new random order, which begins a new pass.
    """

    def __init__(
        self,
        shards: list[str] | str,
        batch_size: int = 256,
        weights: list[float] | None = None,
        workers: int = 4,
        seed: int = 0,
        image_size: int = 224,
        context_length: int = 77,
        tokenizer: str = "clip",
        caption_fields: tuple[str, ...] = ("txt",),
        caption_weights: tuple[float, ...] = (),
        cache: Literal["none", "memory"] = "none",
        cache_gb: float = DEFAULT_POOL_GB,
        decode: Literal["cpu", "gpu", "hybrid"] = "cpu",
        block_shards: int = 1,
        replacement: bool = False,
        min_crop_area: float = 0.9,
        flip: bool = False,
        background: Literal["white", "random"] = "white",
        jitter: float = 0.0,
        min_side_px: int = 1,
        max_aspect: float = 20.0,
        max_pixels: int = Limits.max_pixels,
        bad_share_limit: float = 0.1,
        start_method: Literal["fork", "spawn", "forkserver"] | None = None,
        prefetch_batches: int = 2,
        read_ahead: bool = False,
        retries: int = ShardOpener.retries,
        local_cache: str | None = None,
        local_cache_gb: float = ShardOpener.cache_gb,
        sample_seconds: float | None = None,
        audit: str | None = None,
        changed_layout: Literal["stop", "reshuffle"] = "stop",
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.skipped: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._sources = make_sources(shards, weights)
        self._workers = workers
        self._seed = self._order_seed = seed
        self._captions = Captions(tuple(caption_fields), tuple(caption_weights))
        self._augmentation = Augmentation(image_size, min_crop_area, flip, background, jitter)
        self._limits = Limits(min_side_px, max_aspect, max_pixels)
        self._tokenizer, self._context_length = tokenizer, context_length
        self._in_memory, self._cache_gb = cache == "memory", cache_gb
        self._leave_jpegs = DEVICE_DECODE_FRACTION[decode]
        self._block_shards = block_shards
        self._replacement = replacement
        self._bad_share_limit = bad_share_limit
        self._start_method = start_method
        self._prefetch_batches = prefetch_batches
        self._reshuffle = changed_layout == "reshuffle"
        self._read_ahead = read_ahead
        self._opener = ShardOpener(retries, cache_dir=local_cache, cache_gb=local_cache_gb)
        self._audit = audit
        self._state: RankState | None = None
        _check(batch_size, block_shards, workers, decode=decode, in_memory=self._in_memory, cache_gb=cache_gb)
        set_sample_seconds(sample_seconds)

    def train_dataloader(self) -> ShardLoader:
        """Batches from the present position on, for this rank."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if self.batch_size % world_size:
            raise UserError(f"batch_size {self.batch_size} does not divide among {world_size} processes")
        self._state = self._state or RankState.fresh(max(self._workers, 1), len(self._sources))
        device = self.trainer.strategy.root_device
        return ShardLoader(
            self._stream(rank, world_size, device),
            workers=self._workers,
            start_method=self._start_method,
            prefetch_batches=self._prefetch_batches,
            decoder=DeviceDecoder(self._augmentation, device) if self._leave_jpegs or device.type == "cuda" else None,
        )

    def _stream(self, rank: int, world_size: int, device: torch.device) -> ShardStream:
        assert self._state is not None
        return ShardStream(
            self._sources,
            batch_size=self.batch_size // world_size,
            rank=rank,
            world_size=world_size,
            workers=self._workers,
            seed=self._order_seed,
            captions=self._captions,
            augmentation=self._augmentation,
            limits=self._limits,
            tokenizer=self._tokenizer,
            context_length=self._context_length,
            block_shards=self._block_shards,
            replacement=self._replacement,
            in_memory=self._in_memory,
            pool_gb=self._cache_gb,
            pool_device=device if device.type == "cuda" else None,
            bad_share_limit=self._bad_share_limit,
            device_decode_fraction=self._leave_jpegs,
            read_ahead=self._read_ahead,
            opener=self._opener,
            start=RankState.from_plain(self._state.to_plain()),
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """To the model's device, where training batches are already; Lightning would look at each of their keys."""
        if isinstance(batch, dict) and "cursor" in batch and batch["image"].device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def consumed(self, batch: Batch) -> None:
        """Moves the position behind `batch`; to be called once a step, when the batch has been trained on."""
        assert self._state is not None
        self._state.consumed(batch)
        self.skipped.update(batch["skipped"])
        for reason, shard, key in batch["problems"]:
            self._examples.setdefault(reason, place_of(shard, key))
        if self._audit is not None:
            assert self.trainer is not None
            Audit(self._audit, self.trainer.global_rank).write(batch)

    def skipped_text(self) -> str:
        """What this rank has skipped since the run began: `"image damaged 3 (first: 00000.tar: b), no caption 1"`."""
        return counts(self.skipped, self._examples)

    def _layout(self) -> StreamLayout:
        assert self.trainer is not None
        return StreamLayout.of(
            self._sources,
            seed=self._seed,
            world_size=self.trainer.world_size,
            workers=max(self._workers, 1),
            block_shards=self._block_shards,
            replacement=self._replacement,
            in_memory=self._in_memory,
        )

    def state_dict(self) -> dict[str, Any]:
        """Positions of all ranks. A collective call where several processes train: each of them must make it."""
        if self._state is None:
            return {}
        mine = {**self._state.to_plain(), "skipped": dict(self.skipped)}
        ranks: list[Any] = [mine]
        if dist.is_available() and dist.is_initialized():
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, mine)
        return {"layout": self._layout().to_plain(), "order_seed": self._order_seed, "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes at this rank's position.

        Raises:
            UserError: the position was taken in another layout and `changed_layout` is 'stop'; says what differs.
        """
        assert self.trainer is not None
        if not state_dict:
            return
        chosen = choose_state(state_dict, self._layout(), self.trainer.global_rank, reshuffle=self._reshuffle)
        self._order_seed, self._state, self.skipped = chosen


class StreamPosition(pl.Callback):
    """Tells the data module which batches have been trained on, so that checkpoints hold the right position."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """After each step."""
        batch = kwargs.get("batch", args[2] if len(args) > 2 else None)
        trainer.datamodule.consumed(batch)  # type: ignore[attr-defined]


def _check(batch_size: int, block_shards: int, workers: int, *, decode: str, in_memory: bool, cache_gb: float) -> None:
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("block_shards", block_shards, 1),
        ("workers", workers, 0),
    ):
        if value < least:
            raise UserError(f"{name} {value} must be at least {least}")
    if not cache_gb > 0:
        raise UserError(f"cache_gb {cache_gb} must be positive")
    if decode != "cpu" and in_memory:
        raise UserError(f"decode '{decode}' and cache 'memory' exclude each other: the cache decodes once")


def make_sources(shards: list[str] | str, weights: list[float] | None) -> list[WeightedSource]:
    """One source of everything, or one for each entry when there are weights.

    Raises:
        UserError: missing shards, or weights that do not fit.
    """
    if weights is None:
        return [WeightedSource(tuple(expand_urls(shards)))]
    entries = [shards] if isinstance(shards, str) else list(shards)
    if len(weights) != len(entries):
        raise UserError(f"weights has {len(weights)} numbers for {len(entries)} entries of shards")
    if min(weights) <= 0:
        raise UserError(f"weights {weights} must be positive; leave out an entry of shards that is not wanted")
    return [WeightedSource(tuple(expand_urls(entry)), weight) for entry, weight in zip(entries, weights, strict=True)]
