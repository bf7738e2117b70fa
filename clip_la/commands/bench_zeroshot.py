"""`clip-la bench zeroshot`: time and memory at ImageNet-21K's size, and beside CLIP_benchmark's loop."""

from pathlib import Path

from clip_la.cli import Parser


def main(argv: list[str]) -> None:
    """Runs `clip-la bench zeroshot ...`."""
    parser = Parser(
        prog="clip-la bench zeroshot",
        description="Time and memory of zero-shot evaluation on synthetic images: a large class set, the same from "
        "the cache, and a small one beside CLIP_benchmark's loop.",
    )
    parser.add_argument("--model", default="vit_b16", help="a softmax preset (default %(default)s)")
    parser.add_argument("--classes", default="imagenet21k", help="the large class set (default %(default)s)")
    parser.add_argument("--compare-classes", default="imagenet1k", help="the compared set (default %(default)s)")
    parser.add_argument("--templates", default="openai80", help="prompt set (default %(default)s)")
    # The second name of an option is the one that it had first.
    parser.add_argument(
        "--images", "--pictures", type=int, default=50_000, help="for the large set (default %(default)s)"
    )
    parser.add_argument(
        "--compare-images",
        "--compare-pictures",
        type=int,
        default=50_000,
        help="for the comparison (default %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=128, help="images in a batch (default %(default)s)")
    parser.add_argument("--workers", type=int, help="reading processes (default: one a core, at most 16)")
    parser.add_argument("--precision", choices=("float32", "bf16"), help="default: bf16 on a GPU, else float32")
    parser.add_argument("--out", type=Path, help="JSON lines are appended here, one a phase")
    args = parser.parse_args(argv)
    from clip_la.bench.zeroshot import run_benchmark

    run_benchmark(
        model=args.model,
        classes=args.classes,
        compare_classes=args.compare_classes,
        templates=args.templates,
        num_images=args.images,
        num_compare_images=args.compare_images,
        batch_size=args.batch_size,
        workers=args.workers,
        precision=args.precision,
        out=args.out,
    )
    if args.out:
        print(f"wrote {args.out}")
