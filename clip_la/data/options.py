"""Every option of the training data, written once: its name, type, default, help (the text below it) and check.

Plain, without torch, as clip_la/train/options.py; `ShardDataModule` takes the object.
"""

from dataclasses import dataclass
from typing import Literal

from clip_la.data.images.limits import Limits
from clip_la.data.shards.sources import ShardOpener, check_weights
from clip_la.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """All options under `data.`; size of the images and length of the captions are the model's.

    Raises UserError for values that cannot be; what concerns one part of the stream is checked by the part
    (Augmentation, Captions, ...), when the data module makes it.
    """

    shards: list[str] | str
    """paths, brace ranges ('/data/{00000..00099}.tar'), globs, folders, s3://, gs:// or http(s):// addresses, or
    'pipe:COMMAND'; a list of these is read as one source, or as one source each when `weights` are given"""
    batch_size: int = 256
    """samples in a step over all processes together"""
    weights: list[float] | None = None
    """how often samples are drawn from each entry of `shards`, relative to the others"""
    workers: int = 4
    """loader processes of each rank; 0 reads in the training process"""
    tokenizer: str = "clip"
    """name of the tokenizer"""
    caption_fields: tuple[str, ...] = ("txt",)
    """where captions are: part names ('txt') or keys of the JSON part ('json.caption')"""
    caption_weights: tuple[float, ...] = ()
    """probabilities of the caption fields; equal when left out"""
    cache: Literal["none", "memory"] = "none"
    """'memory' decodes a small corpus once, in each process of the run, and makes batches by tensor operations, from
    the GPU's memory if they take no more than a quarter of it; 'none' streams. No loader processes are started then,
    though the order of the samples still follows from `workers`"""
    cache_gb: float = 8.0
    """GiB of decoded pixels that cache 'memory' may take in each process of the run"""
    decode: Literal["cpu", "gpu", "hybrid"] = "cpu"
    """where JPEGs are decoded: 'cpu' by the workers; 'gpu' by nvJPEG, for workers that cannot keep up; 'hybrid' two
    thirds by nvJPEG and the others by the workers"""
    block_shards: int = 1
    """shards a worker reads and shuffles at a time; also what resuming has to read again"""
    replacement: bool = False
    """draw shards independently instead of each once before any comes again"""
    min_crop_area: float = 0.9
    """least share of an image's area that the random crop keeps; 1 takes the centre square"""
    flip: bool = False
    """mirror half of the images left to right; wrong for captions that say left or right"""
    background: Literal["white", "random"] = "white"
    """what shows through transparent images: 'white', or a 'random' colour each time"""
    jitter: float = 0.0
    """largest relative change of brightness, contrast and saturation"""
    min_side_px: int = Limits.min_side_px
    """images with a shorter side are skipped"""
    max_aspect: float = Limits.max_aspect
    """images longer than this many times their width, or wider, are skipped"""
    max_pixels: int = Limits.max_pixels
    """larger images are skipped before they are decoded"""
    bad_share_limit: float = 0.1
    """the run stops when a larger share of the samples cannot be used"""
    start_method: Literal["fork", "spawn", "forkserver"] | None = None
    """how loader processes start; the platform's way when left out. The order is the same"""
    prefetch_batches: int = 2
    """batches that each worker makes ahead"""
    read_ahead: bool = False
    """let each worker read its next block of shards in the background, at the price of holding two"""
    retries: int = ShardOpener.retries
    """how often a remote shard or a pipe that breaks is tried again, with longer and longer waits; reading goes on at
    the byte where it broke"""
    local_cache: str | None = None
    """folder in which remote shards are kept once read, and what cache 'memory' decodes of local ones: one process
    decodes, the others and later runs share its file"""
    local_cache_gb: float = ShardOpener.cache_gb
    """size in GiB beyond which the least recently used shards leave that folder"""
    sample_seconds: float | None = None
    """samples that take longer to read and decode are skipped; a loader process that cannot be interrupted then ends
    the run. Null: 60"""
    sample_log: str | None = None
    """folder for a record of every sample trained on or skipped, one file a rank"""
    audit: str | None = None
    """the earlier name of sample_log"""
    changed_layout: Literal["stop", "reshuffle"] = "stop"
    """what to do when a checkpoint's position was taken with other shards, ranks, workers or order options: 'stop',
    or 'reshuffle' to go on in a new random order, which begins a new pass"""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("block_shards", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)} must be at least {least}")
        if self.weights is not None:
            check_weights(self.shards, self.weights)
        if not self.cache_gb > 0:
            raise UserError(f"cache_gb {self.cache_gb} must be positive")
        if self.decode != "cpu" and self.cache == "memory":
            raise UserError(f"decode '{self.decode}' and cache 'memory' exclude each other: the cache decodes once")

    @property
    def train_data(self) -> str:
        """The shards as they were given, in one text: what checkpoints and result lines call the training data."""
        return self.shards if isinstance(self.shards, str) else " ".join(self.shards)
