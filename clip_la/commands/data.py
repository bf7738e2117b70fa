"""`clip-la data ...`: make shards, check them, look at them."""

import json
from pathlib import Path
from typing import Any

from clip_la.cli import Parser
from clip_la.errors import EXIT_CODE, unknown

ACTIONS = {
    "starter": "the starter corpus: real drawings with their names, from pinned packages, in seconds",
}


def main(argv: list[str]) -> int | None:
    """Runs `clip-la data ACTION ...`."""
    width = max(map(len, ACTIONS)) + 2
    parser = Parser(
        prog="clip-la data",
        description="Image-text pairs as webdataset shards.",
        epilog="actions:\n" + "\n".join(f"  {name:<{width}}{text}" for name, text in ACTIONS.items()),
        formatter_class=_raw(),
    )
    parser.add_argument("action", metavar="ACTION")
    if not argv:
        parser.print_help()
        return EXIT_CODE
    action = parser.parse_args(argv[:1]).action
    if action not in ACTIONS:
        raise unknown("data action", action, ACTIONS)
    return _RUNNERS[action](argv[1:])


def _raw() -> Any:
    import argparse

    return argparse.RawDescriptionHelpFormatter


def _report(manifest: dict[str, Any], out: Path, as_json: bool) -> None:
    """Says what a corpus holds and where it lies."""
    if as_json:
        print(json.dumps({"out": str(out), **manifest}, sort_keys=True, ensure_ascii=False))
        return
    for split, record in manifest["splits"].items():
        classes = f", {record['classes']} classes" if "classes" in record else ""
        print(f"  {split:<24}{record['pairs']:>7} pairs{classes}, {len(record['shards'])} shards")
    print(f"{'wrote' if manifest['built'] else 'already there, nothing to do:'} {out} (see {out / 'manifest.json'})")


def starter(argv: list[str]) -> None:
    """`clip-la data starter OUT`."""
    from clip_la.data.corpora.starter import DEFAULT_SIZE_PX, build_starter

    parser = Parser(prog="clip-la data starter", description="Builds the starter corpus.")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE_PX, help="side in pixels (default %(default)s)")
    parser.add_argument("--workers", type=int, help="processes that draw (default: one a core, at most 8)")
    parser.add_argument("--json", action="store_true", help="print the manifest instead of a summary")
    args = parser.parse_args(argv)
    _report(build_starter(args.out, size_px=args.size, workers=args.workers), args.out, args.json)


_RUNNERS = {"starter": starter}
