"""How fast the data stream is here: each stage on one core, against open_clip's transform, and the whole loader."""

import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from clip_la.bench.loader import measure_device, measure_loader, text_lines
from clip_la.bench.table import note
from clip_la.data.images.augment import NUM_UNIFORMS, Augmentation
from clip_la.data.shards.problems import BadSample
from clip_la.data.shards.reader import read_samples
from clip_la.data.shards.sources import shard_name
from clip_la.data.stream.order import Streams, sample_uniforms
from clip_la.data.stream.samples import DecodedSample, Limits, SampleDecoder, image_bytes
from clip_la.data.text.captions import Captions
from clip_la.data.text.tokenizer import CaptionEncoder
from clip_la.errors import UserError, counted

STAGES = ("read", "decode", "transform", "tokenize", "collate")
LEFT_ON_CPU = {"cpu": 0.0}
ROUNDS = 5
BATCH_SIZE = 256


def measure_stages(urls: Sequence[str], augmentation: Augmentation, num_samples: int) -> dict[str, float]:
    """Processor microseconds a pair in each stage, on one core: the median of five rounds, which take turns.

    `open_clip` in the result is open_clip's own training transform of the same bytes, decoding included; its equal is
    `decode` and `transform` together.
    """
    torch.set_num_threads(1)
    rows = SampleDecoder(Captions(), augmentation, Limits())
    samples, draws = _usable(urls, rows, num_samples)
    captions = [sample["txt"].decode() for sample in samples]
    encode = CaptionEncoder("clip", 77)

    from open_clip.transform import AugmentationCfg, image_transform

    scale = (augmentation.min_crop_area, 1.0)
    theirs = image_transform(augmentation.image_size, is_train=True, aug_cfg=AugmentationCfg(scale=scale))

    def collate() -> None:
        made = [DecodedSample("", "", "", square) for square in squares]
        for first in range(0, len(made), BATCH_SIZE):
            part = slice(first, first + BATCH_SIZE)
            rows.images(made[part], np.zeros((len(made[part]), NUM_UNIFORMS)))
            encode(captions[part])

    stages: dict[str, Callable[[], Any]] = {
        "read": lambda: list(itertools.islice(_all_samples(urls), num_samples)),
        "decode": lambda: [rows.decode(s, d) for s, d in zip(samples, draws, strict=True)],
        "transform": lambda: [rows.square(pixels, box, d) for (pixels, box), d in zip(decoded, draws, strict=True)],
        # A new encoder each time: captions of a large set are nearly all new.
        "tokenize": lambda: CaptionEncoder("clip", 77)([s["txt"].decode() for s in samples]),
        "collate": collate,
        "open_clip": lambda: [theirs(Image.open(BytesIO(image_bytes(s)))) for s in samples],
    }
    # What a later stage begins with comes from the stage before.
    decoded = stages["decode"]()
    squares = stages["transform"]()
    collate()
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(ROUNDS):
        for name, run in stages.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: 1e6 * median(each) / len(samples) for name, each in seconds.items()}


def _all_samples(urls: Sequence[str]) -> Iterator[dict[str, Any]]:
    return itertools.chain.from_iterable(read_samples(url, on_problem=lambda problem: None) for url in urls)


def _usable(urls: Sequence[str], rows: SampleDecoder, count: int) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """The first samples that training could use, at most `count`, and their uniforms. Raises UserError for none."""
    draws = sample_uniforms(Streams(0, 1, 1, 0, 0), np.arange(count), NUM_UNIFORMS).tolist()
    usable: list[dict[str, Any]] = []
    for sample in _all_samples(urls):
        try:
            rows.sample(sample, draws[len(usable)])
        except BadSample:
            continue
        usable.append(sample)
        if len(usable) == count:
            break
    if not usable:
        raise UserError(f"no usable sample in {', '.join(map(shard_name, urls[:3]))}; `clip-la data read` says why")
    return usable, draws[: len(usable)]


def bench_data(
    urls: Sequence[str],
    *,
    image_size: int = 224,
    min_crop_area: float = 0.9,
    num_samples: int = 512,
    workers: Sequence[int] = (0,),
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
    decode: Mapping[str, float] = LEFT_ON_CPU,
    seconds: float = 10.0,
) -> dict[str, Any]:
    """All measurements of the stream on some shards.

    Args:
        workers: numbers of loader processes to try.
        decode: ways to decode to try: name -> share of the JPEGs that the device decodes.

    Returns:
        `stages_us` (microseconds a pair and stage on one core), `pairs_per_s_per_core`, `bottleneck` (the slowest
        stage), `open_clip_pairs_per_s_per_core` and `ratio_to_open_clip` (decode and transform against open_clip's
        transform), `loaders` (what `measure_loader` gives for each number of workers and way to decode), `device_us`
        (what `measure_device` gives, for a GPU), and what machine it was.
    """
    augmentation = Augmentation(image_size, min_crop_area)
    note(f"timing the stages on one core, with {num_samples} pairs")
    stages = measure_stages(urls, augmentation, num_samples)
    theirs = stages.pop("open_clip")
    ours = stages["decode"] + stages["transform"]
    # Processes are forked for the first loader after single-core work, before anything touches the GPU.
    loaders = []
    for count, (name, share) in itertools.product(workers, decode.items()):
        note(f"timing the loader for {seconds:g} s: {counted(count, 'worker')}, decoding {name}")
        figures = measure_loader(
            urls, augmentation, workers=count, batch_size=batch_size, device=device, share=share, seconds=seconds
        )
        loaders.append({"decode": name, "workers": count, **figures})
    on_device = measure_device(urls, augmentation, batch_size=batch_size, device=device) if device != "cpu" else {}
    return {
        "stages_us": stages,
        "pairs_per_s_per_core": 1e6 / sum(stages.values()),
        "bottleneck": max(stages, key=lambda name: stages[name]),
        "transform_pairs_per_s_per_core": 1e6 / ours,
        "open_clip_pairs_per_s_per_core": 1e6 / theirs,
        "ratio_to_open_clip": theirs / ours,
        "loaders": loaders,
        "device_us": on_device,
        "batch_size": batch_size,
        "image_size": image_size,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def table(result: dict[str, Any]) -> str:
    """The result as text, one line a stage."""
    total = sum(result["stages_us"].values())
    lines = [f"{'stage':<12}{'us a pair':>10}{'share':>8}{'pairs/s on a core':>19}"]
    lines += [f"{name:<12}{us:>10.0f}{us / total:>8.0%}{1e6 / us:>19,.0f}" for name, us in result["stages_us"].items()]
    lines += [
        f"{'all':<12}{total:>10.0f}{1:>8.0%}{result['pairs_per_s_per_core']:>19,.0f}",
        f"bottleneck: {result['bottleneck']}",
        f"decode and transform: {result['transform_pairs_per_s_per_core']:,.0f} pairs/s a core, open_clip's transform "
        f"{result['open_clip_pairs_per_s_per_core']:,.0f}: {result['ratio_to_open_clip']:.2f} times as fast",
    ]
    return "\n".join([*lines, *text_lines(result["loaders"], result["device"], result["device_us"])])
