"""`ShardDataModule`: the stream as PyTorch Lightning wants it, its position in every checkpoint."""

from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from clip_la.data.images.augment import Augmentation
from clip_la.data.images.limits import Limits
from clip_la.data.options import StreamOptions
from clip_la.data.shards.sources import ShardOpener, check_cache_folder, check_weights, expand_urls, place_of
from clip_la.data.shards.watch import set_sample_seconds
from clip_la.data.stream.device import DeviceDecoder
from clip_la.data.stream.encoded import DEVICE_DECODE_FRACTION
from clip_la.data.stream.loader import ShardLoader
from clip_la.data.stream.order import WeightedSource
from clip_la.data.stream.position import RankState, StreamLayout, choose_state
from clip_la.data.stream.sample_iterator import counts
from clip_la.data.stream.sample_log import SampleLog
from clip_la.data.stream.stream import Batch, ShardStream
from clip_la.data.text.captions import Captions
from clip_la.errors import UserError


class ShardDataModule(pl.LightningDataModule):
    """Endless training batches from webdataset shards, resumed to the very next sample.

    Args:
        options: shards, captions, augmentation and loading, as under `data.` on the command line.
        image_size: side of the images given to the model, in pixels.
        context_length: longest caption, in tokens; longer ones are cut.
        seed: of the order, the choice of captions and the augmentation.

    Raises UserError for shards that are not there and options that do not fit together.
    """

    def __init__(
        self, options: StreamOptions, *, image_size: int = 224, context_length: int = 77, seed: int = 0
    ) -> None:
        super().__init__()
        self.options = options
        self.batch_size = options.batch_size
        self.skipped: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        if options.local_cache is not None:
            check_cache_folder(options.local_cache)
        self._sources = make_sources(options.shards, options.weights)
        self._seed = self._order_seed = seed
        self._captions = Captions(options.caption_fields, options.caption_weights)
        self._augmentation = Augmentation(
            image_size, options.min_crop_area, options.flip, options.background, options.jitter
        )
        self._limits = Limits(options.min_side_px, options.max_aspect, options.max_pixels)
        self._context_length = context_length
        self._in_memory = options.cache == "memory"
        self._device_fraction = DEVICE_DECODE_FRACTION[options.decode]
        self._opener = ShardOpener(options.retries, cache_dir=options.local_cache, cache_gb=options.local_cache_gb)
        self._state: RankState | None = None
        set_sample_seconds(options.sample_seconds)

    def train_dataloader(self) -> ShardLoader:
        """Batches from the present position on, for this rank."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if self.batch_size % world_size:
            raise UserError(f"batch_size {self.batch_size} does not divide among {world_size} processes")
        # load_state_dict, which Lightning calls before, has set it where a run goes on.
        self._state = self._state or RankState.fresh(max(self.options.workers, 1), len(self._sources))
        device = self.trainer.strategy.root_device
        return ShardLoader(
            self._stream(rank, world_size, device),
            workers=self.options.workers,
            start_method=self.options.start_method,
            prefetch_batches=self.options.prefetch_batches,
            decoder=DeviceDecoder(self._augmentation, device)
            if self._device_fraction or device.type == "cuda"
            else None,
        )

    def _stream(self, rank: int, world_size: int, device: torch.device) -> ShardStream:
        assert self._state is not None
        return ShardStream(
            self._sources,
            batch_size=self.batch_size // world_size,
            rank=rank,
            world_size=world_size,
            workers=self.options.workers,
            seed=self._order_seed,
            captions=self._captions,
            augmentation=self._augmentation,
            limits=self._limits,
            tokenizer=self.options.tokenizer,
            context_length=self._context_length,
            block_shards=self.options.block_shards,
            replacement=self.options.replacement,
            in_memory=self._in_memory,
            pool_gb=self.options.cache_gb,
            pool_device=device if device.type == "cuda" else None,
            bad_share_limit=self.options.bad_share_limit,
            device_decode_fraction=self._device_fraction,
            read_ahead=self.options.read_ahead,
            opener=self._opener,
            # A copy: the stream's own position runs ahead of what has been trained on.
            start=RankState.from_plain(self._state.to_plain()),
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """To the model's device, where training batches are already; Lightning would look at each of their keys."""
        if isinstance(batch, dict) and "cursor" in batch and batch["image"].device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def advance(self, batch: Batch) -> None:
        """Moves the position behind `batch`; to be called once a step, when the batch has been trained on."""
        assert self._state is not None
        self._state.advance(batch)
        self.skipped.update(batch["skipped"])
        for reason, shard, key in batch["problems"]:
            self._examples.setdefault(reason, place_of(shard, key))
        if (folder := self.options.sample_log or self.options.audit) is not None:
            assert self.trainer is not None
            SampleLog(folder, self.trainer.global_rank).write(batch)

    def skipped_text(self) -> str:
        """What this rank has skipped since the run began: `"image damaged 3 (first: 00000.tar: b), no caption 1"`."""
        return counts(self.skipped, self._examples)

    def _layout(self) -> StreamLayout:
        assert self.trainer is not None
        return StreamLayout.of(
            self._sources,
            seed=self._seed,
            world_size=self.trainer.world_size,
            workers=max(self.options.workers, 1),
            block_shards=self.options.block_shards,
            replacement=self.options.replacement,
            in_memory=self._in_memory,
        )

    def state_dict(self) -> dict[str, Any]:
        """Positions of all ranks. A collective call where several processes train: each of them must make it."""
        if self._state is None:
            return {}
        # Plain values alone, which every checkpoint reader may unpickle.
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
        # A checkpoint from before the first batch has no position.
        if not state_dict:
            return
        reshuffle = self.options.changed_layout == "reshuffle"
        chosen = choose_state(state_dict, self._layout(), self.trainer.global_rank, reshuffle=reshuffle)
        self._order_seed, self._state, self.skipped = chosen


class StreamPosition(pl.Callback):
    """Tells the data module which batches have been trained on, so that checkpoints hold the right position."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """After each step."""
        batch = kwargs.get("batch", args[2] if len(args) > 2 else None)
        trainer.datamodule.advance(batch)  # type: ignore[attr-defined]


def make_sources(shards: list[str] | str, weights: list[float] | None) -> list[WeightedSource]:
    """One source of everything, or one for each entry when there are weights.

    Raises:
        UserError: missing shards, or weights that do not fit.
    """
    if weights is None:
        return [WeightedSource(tuple(expand_urls(shards)))]
    check_weights(shards, weights)
    entries = [shards] if isinstance(shards, str) else shards
    return [WeightedSource(tuple(expand_urls(entry)), weight) for entry, weight in zip(entries, weights, strict=True)]
