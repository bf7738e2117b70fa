"""`clip-la bench`: measured tables for this machine, one sub-verb a table."""

import argparse
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from clip_la.cli import Parser
from clip_la.errors import EXIT_CODE, UserError, unknown

if TYPE_CHECKING:
    import torch

TABLES = {
    "attention": "the attention kinds beside softmax, by number of tokens",
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


def add_hardware(parser: Parser) -> None:
    """Adds the options of tables that are measured on any device: --device, --precision, --out, --json."""
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 on a GPU, else float32",
    )
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument("--out", type=Path, help="table to write, CSV, anew with each row")
    parser.add_argument("--json", action="store_true", help="print each row as a line of JSON")


def hardware(args: argparse.Namespace, table: str) -> "tuple[torch.device, torch.dtype]":
    """The device (under torchrun this rank's own) and dtype that those options name. Raises UserError for a GPU that is
    not there."""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"bench {table}: --device cuda: PyTorch finds no GPU here; give cpu")
    on_gpu = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    is_wide = args.precision == "float32" or (args.precision == "auto" and not on_gpu)
    return device, torch.float32 if is_wide else torch.bfloat16
