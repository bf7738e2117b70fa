"""`clip-la bench data`: how fast the data stream is here, stage by stage, and what holds it up."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from clip_la.cli import Parser
from clip_la.errors import UserError

SAMPLES_A_SHARD = 1024
DEVICES = ("cpu", "cuda")


def _parser() -> Parser:
    parser = Parser(
        prog="clip-la bench data",
        description="Pairs a second of the data stream: read, decode, transform, tokenize, collate, each on one core; "
        "open_clip's transform on the same images; the whole loader.",
    )
    parser.add_argument("shards", nargs="*", help="what to measure on (default: crops of photographs, JPEG quality 92)")
    parser.add_argument("--image-size", type=int, default=224, help="side of the model's images in pixels")
    parser.add_argument("--samples", type=int, default=512, help="pairs that the stages are measured on")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[os.cpu_count() or 1],
        help="loader processes, one number or several to try (default: a core each)",
    )
    parser.add_argument("--batch-size", type=int, default=256, help="pairs in a batch of the loader")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where the loader's batches go")
    parser.add_argument(
        "--decode",
        nargs="+",
        default=["cpu"],
        metavar="WAY",
        help="where the loader's JPEGs are decoded, one way or several to try: cpu (by the workers), gpu (by the "
        "device), hybrid (by both), or the share that the device decodes, as 0.5",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the loader is measured")
    parser.add_argument("--num-shards", type=int, help="photograph shards to make (default: two a worker)")
    parser.add_argument("--out", help="file for the result as JSON")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def main(argv: list[str]) -> int | None:
    """Runs `clip-la bench data ...`."""
    args = _parser().parse_args(argv)
    decode = _checked(args)

    from clip_la.atomic import atomic_write
    from clip_la.bench.data import bench_data, table
    from clip_la.bench.photos import write_photo_shards
    from clip_la.data.shards.sources import expand_urls

    with tempfile.TemporaryDirectory(prefix="clip_la_photos_") as folder:
        if args.shards:
            urls = expand_urls(args.shards)
        else:
            cores = max(*args.workers, 1)
            count = args.num_shards or 2 * cores
            print(f"making {count} shards of {SAMPLES_A_SHARD} photographs", file=sys.stderr)
            urls = write_photo_shards(Path(folder), count, SAMPLES_A_SHARD, cores)
        result = bench_data(
            urls,
            image_size=args.image_size,
            num_samples=args.samples,
            workers=args.workers,
            batch_size=args.batch_size,
            device=args.device,
            decode=decode,
            seconds=args.seconds,
        )
    print(json.dumps(result) if args.json else table(result))
    if args.out:
        with atomic_write(args.out, "w") as file:
            json.dump(result, file, indent=1)
        print(f"wrote {args.out}", file=sys.stderr if args.json else sys.stdout)
    return None


def _checked(args: argparse.Namespace) -> dict[str, float]:
    """The share of JPEGs that the device decodes, by what --decode calls it. Raises UserError for any wrong option."""
    from clip_la.data.stream.encoded import DEVICE_DECODE_FRACTION

    at_least = {"image_size": 1, "samples": 1, "batch_size": 1}
    if min(args.workers) < 0:
        raise UserError(f"--workers {min(args.workers)} must be at least 0")
    for name, least in at_least.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least {least}")
    if args.seconds <= 0:
        raise UserError(f"--seconds {args.seconds} must be positive")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch finds no CUDA device here")
    decode = {}
    for way in args.decode:
        try:
            decode[way] = float(DEVICE_DECODE_FRACTION.get(way, way))
        except ValueError:
            decode[way] = -1.0
        if not 0 <= decode[way] <= 1:
            ways = ", ".join(DEVICE_DECODE_FRACTION)
            raise UserError(f"--decode {way}: must be one of {ways}, or a share from 0 to 1")
    return decode
