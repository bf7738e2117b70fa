"""Zero-shot evaluation at ImageNet-21K's size, on synthetic images of the right shape: time and memory, each phase.

Phases, each one JSON line as soon as it is done: 21,841 classes with 80 prompts each (text classifier, then images),
the same again from the cache, ImageNet-1K's classes without cache, and CLIP_benchmark's loop on the same 1,000 classes,
images and weights. Random weights: speed does not depend on them, and agreement of the two loops can still be seen.

    clip-la bench zeroshot --out results/zeroshot_speed.jsonl
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_la.bench.memory import MemoryWatch
from clip_la.bench.table import note
from clip_la.errors import unknown

# The commonest size of ImageNet's images, and about their bytes a file.
WIDTH_PX, HEIGHT_PX, JPEG_QUALITY = 500, 375, 90
NOISE_PX = (25, 19)
# Distinct files; more images are further names of the same files, read and decoded each time all the same.
NUM_DISTINCT = 4096
CLIP_BENCHMARK_BATCH = 64


def _write_images(root: str, numbers: Sequence[int]) -> None:
    """JPEGs of smooth noise, as hard to decode as photographs, named by their numbers, which are their seeds."""
    for number in numbers:
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (*NOISE_PX[::-1], 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = generator.integers(-8, 9, smooth.shape, dtype=np.int16)
        image = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        image.save(Path(root) / f"{number}.jpg", quality=JPEG_QUALITY)


def make_folder(root: Path, wnids: Sequence[str], num_images: int, workers: int) -> Path:
    """Class folders with `num_images` images in all, spread evenly."""
    distinct = min(NUM_DISTINCT, num_images)
    store = root / "store"
    store.mkdir(parents=True)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(_write_images, [str(store)] * workers, [range(w, distinct, workers) for w in range(workers)]))
    images = root / "images"
    for wnid in wnids:
        (images / wnid).mkdir(parents=True)
    for number in range(num_images):
        os.link(store / f"{number % distinct}.jpg", images / wnids[number % len(wnids)] / f"{number}.jpg")
    return images


class Stopwatch:
    """Names phases and keeps their seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def measure_ours(
    eval_model: Any, test_set: Any, templates: Any, cache: Any, *, precision: str, batch_size: int, workers: int
) -> tuple[dict[str, Any], Any]:
    """Classifier and images through this project's functions: (seconds and rates, predictions)."""
    import torch

    from clip_la.zeroshot.model.classifier import build_classifier
    from clip_la.zeroshot.runner.loop import EvalSettings
    from clip_la.zeroshot.tasks.classification import classify

    watch = Stopwatch()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with MemoryWatch() as memory:
        with watch.phase("classifier_s"):
            classifier = build_classifier(
                eval_model, test_set.classes, templates, precision=precision, num_workers=workers, cache=cache
            )
        with watch.phase("pictures_s"):
            found = classify(eval_model, classifier, test_set, EvalSettings(precision, batch_size, workers))
    figures = {"num_classes": len(test_set.classes), "num_pictures": len(found), **watch.seconds, **memory.figures()}
    figures["pictures_per_s"] = round(len(found) / watch.seconds["pictures_s"], 1)
    figures["total_s"] = round(sum(watch.seconds.values()), 2)
    if torch.cuda.is_available():
        figures["gpu_peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        figures["gpu_reserved_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
    return figures, found


def measure_clip_benchmark(
    model: str, eval_model: Any, images: Path, classes: Any, templates: Sequence[str], *, workers: int
) -> tuple[dict[str, Any], np.ndarray]:
    """CLIP_benchmark's own functions as its `eval` calls them, on open_clip's `model` with our weights: (seconds and
    rates, predicted class of each image)."""
    import open_clip
    import torch
    from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier
    from open_clip import get_tokenizer
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.datasets import ImageFolder

    from clip_la.models.interop import OPEN_CLIP_NAMES, to_open_clip

    module: Any = open_clip.create_model(OPEN_CLIP_NAMES[model], precision="fp32")
    module.load_state_dict(to_open_clip(eval_model.module), strict=False)
    module = module.eval().to(eval_model.device)
    names, device = [own[0] for own in classes.names], eval_model.device.type
    transform = image_transform_v2(PreprocessCfg(**module.visual.preprocess_cfg), is_train=False)
    loader = torch.utils.data.DataLoader(
        ImageFolder(str(images), transform=transform), batch_size=CLIP_BENCHMARK_BATCH, num_workers=workers
    )
    watch = Stopwatch()
    with MemoryWatch() as memory:
        with watch.phase("classifier_s"):
            tokenizer = get_tokenizer("ViT-B-16")
            classifier = zero_shot_classifier(module, tokenizer, names, list(templates), device, amp=True)
        with watch.phase("pictures_s"):
            logits, _ = run_classification(module, classifier, loader, device, amp=True)
    figures = {"num_classes": len(names), "num_pictures": len(logits), **watch.seconds, **memory.figures()}
    figures["pictures_per_s"] = round(len(logits) / watch.seconds["pictures_s"], 1)
    figures["total_s"] = round(sum(watch.seconds.values()), 2)
    return figures, logits.argmax(1).numpy()


def run_benchmark(
    *,
    model: str,
    classes: str,
    compare_classes: str,
    templates: str,
    num_images: int,
    num_compare_images: int,
    batch_size: int,
    workers: int | None = None,
    precision: str | None = None,
    out: Path | None = None,
) -> None:
    """Runs all phases; prints, and appends to `out`, a JSON line for each as soon as it is done.

    Args:
        model: a preset that open_clip has too, for the comparison; it gets random weights.
        classes, compare_classes: class sets: the large one, and the one CLIP_benchmark is compared on.
        templates: a prompt set.
        num_images, num_compare_images: synthetic images for the large set and for the comparison.
        workers: reading processes; None is one a core, at most 16.
        precision: float32 or bf16; None is bf16 on a GPU.

    Raises:
        UserError: unknown model, class set or prompt set.
    """
    from clip_la import distributed as ranks
    from clip_la.models.interop import OPEN_CLIP_NAMES
    from clip_la.results import device_name
    from clip_la.zeroshot.labels import prompts
    from clip_la.zeroshot.labels.classes import class_set
    from clip_la.zeroshot.model.load import choose_device

    if model not in OPEN_CLIP_NAMES:
        raise unknown("model that open_clip has too", model, OPEN_CLIP_NAMES)
    device = choose_device(None)
    workers = ranks.default_workers() if workers is None else workers
    precision = precision or ("bf16" if device.type == "cuda" else "float32")
    settings = {"precision": precision, "batch_size": batch_size, "workers": workers}
    origin = {"model": model, "device": device_name(device), "workers": workers, "precision": precision}
    small, large, prompt_set = class_set(compare_classes), class_set(classes), prompts.prompt_set(templates)
    with tempfile.TemporaryDirectory(prefix="clip_la_bench_") as folder:
        sizes = (num_images, num_compare_images)
        for phase, figures in _phases(Path(folder), model, device, small, large, prompt_set, sizes, settings):
            line = json.dumps({"phase": phase, **figures, **origin})
            print(line, flush=True)
            if out is not None:
                with out.open("a", encoding="utf-8") as stream:
                    stream.write(line + "\n")


def _phases(
    folder: Path,
    model: str,
    device: Any,
    small: Any,
    large: Any,
    templates: Any,
    sizes: tuple[int, int],
    settings: dict[str, Any],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(phase, figures) of each phase as it ends; `sizes`: images for the large class set and for the small one."""
    import torch

    from clip_la.models import create_model
    from clip_la.results import versions
    from clip_la.zeroshot.datasets.find import open_dataset
    from clip_la.zeroshot.model.classifier_cache import ClassifierCache
    from clip_la.zeroshot.model.eval_model import of_model

    watch, workers = Stopwatch(), settings["workers"]
    with watch.phase("make_pictures_s"):
        # One class of ImageNet-1K is missing from fall11.
        wnids = [key for key in small.ids if key in large.index]
        note(f"making {sizes[0]:,} images")
        images = compared = make_folder(folder / "large", wnids, sizes[0], workers)
        if sizes[0] != sizes[1]:
            compared = make_folder(folder / "compare", wnids, sizes[1], workers)
    eval_model = of_model(create_model(model, seed=0))
    eval_model.module.eval().requires_grad_(False).to(device)
    # Starts CUDA, so that its memory is in the figures before the first phase.
    torch.zeros(1, device=device) @ torch.zeros(1, device=device)
    yield "setup", {**watch.seconds, **MemoryWatch().figures(), "versions": versions()}
    cache = ClassifierCache(folder / "cache")
    for phase in ("large_first", "large_from_cache"):
        note(f"timing {phase}: {len(large):,} classes, then {sizes[0]:,} images")
        data = open_dataset(str(images), classes=large)
        yield phase, measure_ours(eval_model, data, templates, cache, **settings)[0]
    note(f"timing small_ours, then CLIP_benchmark's loop: {len(small):,} classes, then {sizes[1]:,} images, each")
    data = open_dataset(str(compared), classes=small)
    ours, predictions = measure_ours(eval_model, data, templates, None, **settings)
    yield "small_ours", ours
    theirs, predicted = measure_clip_benchmark(model, eval_model, compared, small, templates.templates, workers=workers)
    # Both read folders and files in sorted order.
    agreeing = float((predicted == predictions.top[:, 0]).mean())
    ratio = round(theirs["total_s"] / ours["total_s"], 2)
    yield "small_clip_benchmark", {**theirs, "ratio": ratio, "same_top1": agreeing}
