"""`clip-la data ACTION`: make shards, check them, look at them."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_la.cli import Parser
from clip_la.errors import EXIT_CODE, UserError, printable, unknown
from clip_la.json_text import json_text

# Exit code of `verify` and `read` when they worked but found something wrong.
FOUND_PROBLEMS = 1


def main(argv: list[str]) -> int | None:
    """Runs `clip-la data ACTION ...`."""
    width = max(map(len, ACTIONS)) + 2
    parser = Parser(
        prog="clip-la data",
        description="Image-text pairs as webdataset shards.",
        epilog="actions:\n"
        + "\n".join(f"  {name:<{width}}{text}" for name, (text, _) in ACTIONS.items())
        + "\n\n`clip-la data ACTION --help` says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", metavar="ACTION")
    if not argv:
        parser.print_help()
        return EXIT_CODE
    action = parser.parse_args(argv[:1]).action
    if action not in ACTIONS:
        raise unknown("data action", action, ACTIONS)
    return ACTIONS[action][1](action, argv[1:])


def _parser(action: str, *, json_help: str, workers: bool = True) -> Parser:
    def sample_seconds(text: str) -> None:
        """Sets the limit for this process and its workers, so nobody has to hand it on."""
        from clip_la.data.shards.watch import set_sample_seconds

        try:
            set_sample_seconds(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    parser = Parser(prog=f"clip-la data {action}", description=ACTIONS[action][0])
    if workers:
        parser.add_argument(
            "--workers", type=_positive, default=os.cpu_count() or 1, help="processes (default: one a core)"
        )
        parser.add_argument(
            "--sample-seconds",
            type=sample_seconds,
            help="a sample that takes longer to read and decode is skipped and counted (default 60)",
        )
    parser.add_argument("--json", action="store_true", help=json_help)
    return parser


def _positive(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number of at least 1")
    return value


def _print(args: argparse.Namespace, result: Any, text: str) -> None:
    """Prints the result as JSON on stdout (then the text goes to stderr), or the text alone."""
    if args.json:
        print(json_text(result, sort_keys=True))
    print(text, file=sys.stderr if args.json else sys.stdout)


def _print_corpus(args: argparse.Namespace, manifest: dict[str, Any], lines: Sequence[str] = ()) -> None:
    """The manifest, or `lines` and one for each split, the training split first."""
    table = list(lines)
    for split, record in sorted(manifest["splits"].items(), key=lambda item: (item[0] != "train", item[0])):
        classes = f", {record['classes']} classes" if "classes" in record else ""
        table.append(f"  {split:<24}{record['pairs']:>8} pairs{classes}, {len(record['shards'])} shards")
    verb = "wrote" if manifest["built"] else "already there, nothing to do:"
    table.append(f"{verb} {args.out} (what is in it: {args.out / 'manifest.json'})")
    _print(args, {"out": str(args.out), **manifest}, "\n".join(table))


def _starter(action: str, argv: list[str]) -> None:
    from clip_la.data.corpora.starter import DEFAULT_SIZE_PX, build_starter

    parser = _parser(action, json_help="print the manifest")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE_PX, help="side in pixels (default %(default)s)")
    parser.add_argument("--wide", action="store_true", help="add artists, icons and clip art from npm and Debian")
    parser.add_argument(
        "--npm", type=Path, help="where npm has installed its part (default: a cache, filled if needed)"
    )
    parser.add_argument(
        "--clip-art",
        type=Path,
        help="where openclipart-svg is unpacked (default: the system, else a cache, filled if needed)",
    )
    args = parser.parse_args(argv)
    for option, value in (("--npm", args.npm), ("--clip-art", args.clip_art)):
        if value and not args.wide:
            raise UserError(f"{option} is for --wide, which adds the drawings of further packages")
    manifest = build_starter(
        args.out, size_px=args.size, wide=args.wide, npm=args.npm, art=args.clip_art, workers=args.workers
    )
    _print_corpus(args, manifest)


def _scenes(action: str, argv: list[str]) -> None:
    from clip_la.data.corpora.scenes import DEFAULT_SIZE_PX, build_scenes

    parser = _parser(action, json_help="print the manifest")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to; a stopped call goes on there")
    parser.add_argument("--pairs", type=_positive, required=True, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default %(default)s)")
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE_PX, help="side in pixels (default %(default)s)")
    args = parser.parse_args(argv)
    manifest = build_scenes(args.out, pairs=args.pairs, seed=args.seed, size_px=args.size, workers=args.workers)
    _print_corpus(args, manifest)


def _photos(action: str, argv: list[str]) -> None:
    from clip_la.data.corpora.fashion import build_fashion
    from clip_la.data.corpora.photos import build_photos

    parser = _parser(action, json_help="print the manifest", workers=False)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    parser.add_argument(
        "--from", dest="given", type=Path, help="the unpacked package (default: installed, else fetched by apt-get)"
    )
    args = parser.parse_args(argv)
    build = build_photos if action == "photos" else build_fashion
    _print_corpus(args, build(args.out, given=args.given))


def _photo_folder(action: str, argv: list[str]) -> None:
    """The two corpora that are built from an unpacked folder of ImageNet's photographs."""
    from clip_la.data.corpora import imagenet_photos
    from clip_la.data.corpora.imagenet_photos import DEFAULT_QUALITY, FORMATS, ORIGINAL, WEBP

    build, what = {
        "tiny-imagenet": (imagenet_photos.build_tiny_imagenet, "the unpacked data set: train/WNID/..., val/..."),
        "imagenet-samples": (
            imagenet_photos.build_imagenet_samples,
            "images WNID_name.JPEG or WNID/name.JPEG, at any depth",
        ),
    }[action]
    parser = _parser(action, json_help="print the manifest")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help=what)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    parser.add_argument(
        "--format", default=ORIGINAL, help=f"{' or '.join(FORMATS)} (default %(default)s: the images' own bytes)"
    )
    parser.add_argument("--quality", type=_positive, help=f"of {WEBP}, 1 to 100 (default {DEFAULT_QUALITY})")
    args = parser.parse_args(argv)
    if args.quality and args.format != WEBP:
        raise UserError(f"--quality belongs to --format {WEBP}")
    manifest = build(
        args.folder, args.out, format=args.format, quality=args.quality or DEFAULT_QUALITY, workers=args.workers
    )
    _print_corpus(args, manifest, [f"  left out {num}: {reason}" for reason, num in manifest["left_out"].items()])


def _pack(action: str, argv: list[str]) -> None:
    from clip_la.data.tools.pack import DEFAULT_PER_SHARD, pack
    from clip_la.data.tools.pack_sources import find_source

    parser = _parser(action, json_help="print the counts")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder (X.jpg with X.txt), .csv, .tsv, .jsonl, .parquet, or shards as a folder, range or glob",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to; a stopped call goes on there")
    parser.add_argument(
        "--per-shard", type=int, default=DEFAULT_PER_SHARD, help="samples of a shard (default %(default)s)"
    )
    parser.add_argument("--image-column", help="column of a table with the image's file or bytes")
    parser.add_argument("--caption-column", help="column of a table with the caption")
    parser.add_argument("--images", type=Path, help="folder that file names of a table start from (default: its own)")
    parser.add_argument("--skip-pixels", action="store_true", help="look at headers only, do not decode each image")
    args = parser.parse_args(argv)
    source = find_source(
        args.source, image_column=args.image_column, caption_column=args.caption_column, images=args.images
    )
    result = pack(source, args.out, per_shard=args.per_shard, workers=args.workers, check_pixels=not args.skip_pixels)
    note = f"  {source.note}\n" if source.note else ""
    wrote = f"wrote {result['packed']} pairs in {result['shards']} shards to {args.out}"
    _print(args, result, f"{note}{_reasons(result)}{wrote}")


def _reasons(counts: dict[str, Any]) -> str:
    """A line for each reason, with the place where it was first met."""
    places = {reason: f" (first: {printable(place)})" for reason, place in counts["examples"].items() if place}
    return "".join(f"  skipped {num}: {reason}{places.get(reason, '')}\n" for reason, num in counts["skipped"].items())


def _verify(action: str, argv: list[str]) -> int:
    from clip_la.data.shards.sources import expand_urls
    from clip_la.data.text.captions import Captions
    from clip_la.data.tools.verify import MAX_NAMED, verify, write_sizes

    parser = _parser(action, json_help="print the report")
    parser.add_argument("shards", metavar="SHARDS", nargs="+", help="folder, path, {0000..0099}.tar range or glob")
    parser.add_argument("--caption-fields", nargs="+", default=["txt"], help="text parts, such as txt or json.caption")
    args = parser.parse_args(argv)
    report = verify(expand_urls(args.shards), captions=Captions(tuple(args.caption_fields)), workers=args.workers)
    written = [str(path) for path in write_sizes(report)]
    fine = not report["skipped"] and not report["missing_shards"] and not report["duplicates"]["keys"]
    lines = [f"{report['samples']} samples in {report['shards']} shards, {report['usable']} usable"]
    lines += _reasons(report).splitlines()
    if missing := report["missing_shards"]:
        named = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        lines.append(f"  {len(missing)} shard numbers missing: {named}")
    lines.append("  duplicates: " + ", ".join(f"{n} {kind}" for kind, n in report["duplicates"].items()))
    # The report's field keeps the name that it had first.
    for kind, field in (("captions", "captions"), ("images", "pictures")):
        for unit, spread in report[field].items():
            if spread:
                lines.append(f"  {kind}, {unit}: " + ", ".join(f"{name} {value:g}" for name, value in spread.items()))
    lines.append(f"wrote {', '.join(written)}" if written else "wrote nothing (no local shards)")
    _print(args, {**report, "sizes_files": written, "ok": fine}, "\n".join(lines))
    return 0 if fine else FOUND_PROBLEMS


def _read(action: str, argv: list[str]) -> int:
    from clip_la.data.shards.problems import WORKER_DIED
    from clip_la.data.shards.sources import expand_urls
    from clip_la.data.text.captions import Captions
    from clip_la.data.tools.read import Reading, read

    parser = _parser(action, json_help="print the counts")
    parser.add_argument("shards", metavar="SHARDS", nargs="+", help="folder, path, {0000..0099}.tar range or glob")
    parser.add_argument("--keys", type=Path, metavar="OUT.jsonl", help="write what became of each sample")
    parser.add_argument("--image-size", type=_positive, default=224, help="crops in pixels (default %(default)s)")
    parser.add_argument("--caption-fields", nargs="+", default=["txt"], help="text parts, such as txt or json.caption")
    parser.add_argument("--min-side", type=_positive, default=1, help="skip images with a shorter side (pixels)")
    args = parser.parse_args(argv)
    captions = Captions(tuple(args.caption_fields))
    reading = Reading(tuple(expand_urls(args.shards)), args.image_size, captions=captions, min_side_px=args.min_side)
    counts = read(reading, keys=args.keys, workers=args.workers)
    text = (
        f"{counts['ok']} of {counts['samples']} samples usable, {counts['shards']} shards, "
        f"{counts['pairs_per_s_per_core']:g} pairs/s per core\n{_reasons(counts)}"
        + (f"wrote {args.keys}" if args.keys else "wrote nothing; --keys OUT.jsonl lists every sample")
    )
    _print(args, counts, text)
    return 0 if counts["ok"] and WORKER_DIED not in counts["skipped"] else FOUND_PROBLEMS


def _show(action: str, argv: list[str]) -> None:
    from clip_la.data.shards.sources import expand_urls
    from clip_la.data.tools.show import COLUMNS, show

    parser = _parser(action, json_help="print the paths written", workers=False)
    parser.add_argument("shards", metavar="SHARDS", nargs="+", help="folder, path, {0000..0099}.tar range or glob")
    parser.add_argument("--num", type=_positive, default=48, help="samples to show (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which samples (default %(default)s)")
    parser.add_argument("--columns", type=_positive, default=COLUMNS, help="images in a row (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("contact_sheet.png"), help="the PNG (default %(default)s)")
    args = parser.parse_args(argv)
    written = show(expand_urls(args.shards), args.out, num=args.num, seed=args.seed, columns=args.columns)
    paths = [str(path) for path in written]
    _print(args, {"wrote": paths}, f"wrote {' and '.join(paths)}")


# What --help says of an action, and the function that parses and runs it, given its name.
ACTIONS: dict[str, tuple[str, Callable[[str, list[str]], int | None]]] = {
    "starter": ("the starter corpus: real drawings with their names, from pinned packages, in seconds", _starter),
    "scenes": ("any number of scenes: several drawings on a background, captions that say what is where", _scenes),
    "photos": ("a photographic test set of 181 classes, from Debian's tuxpaint-stamps-default", _photos),
    "fashion-mnist": ("Fashion-MNIST, from Debian's dataset-fashion-mnist", _photos),
    "tiny-imagenet": (
        "Tiny-ImageNet from its unpacked folder: photographs with captions, 40 of 200 classes held out",
        _photo_folder,
    ),
    "imagenet-samples": (
        "a test set of images named by WordNet ids, such as ImageNet-1K's sample images, one a class",
        _photo_folder,
    ),
    "pack": ("pack a folder with captions, a table, Parquet or other shards into shards", _pack),
    "verify": ("read every sample of shards, count what is wrong, write sizes.json", _verify),
    "read": ("one pass over shards as a training run would read them, sample by sample", _read),
    "show": ("a contact sheet of samples with their captions, PNG and HTML", _show),
}
