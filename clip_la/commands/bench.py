"""`clip-la bench`: measured tables for this machine, one sub-verb a table."""

import importlib

from clip_la.cli import Parser
from clip_la.errors import EXIT_CODE, unknown

TABLES = {
    "kernels": "attention kernels against their peers, on a GPU",
    "data": "the data stream, stage by stage, on this machine's cores",
    "train": "training steps, beside open_clip's own",
    "zeroshot": "zero-shot evaluation at ImageNet-21K's size, beside CLIP_benchmark",
}


def main(argv: list[str]) -> int | None:
    """Runs `clip-la bench TABLE ...`."""
    listing = ", ".join(f"{name} ({text})" for name, text in TABLES.items())
    parser = Parser(prog="clip-la bench", description=f"Measured tables for this machine: {listing}.")
    parser.add_argument("table", metavar="TABLE", help=" or ".join(TABLES))
    if not argv:
        parser.print_help()
        return EXIT_CODE
    table = parser.parse_args(argv[:1]).table
    if table not in TABLES:
        raise unknown("bench table", table, TABLES)
    command = importlib.import_module(f"clip_la.commands.bench_{table}")
    result: int | None = command.main(argv[1:])
    return result
