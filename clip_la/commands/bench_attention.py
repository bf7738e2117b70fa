"""`clip-la bench attention`: the speed of every attention kind beside softmax's, by number of tokens."""

import json
import sys
from typing import TYPE_CHECKING

from clip_la.cli import Parser
from clip_la.commands.bench import add_hardware, hardware
from clip_la.errors import UserError

if TYPE_CHECKING:
    from clip_la.bench.attention import AttentionRow

# Lengths that image towers have: 128, 224, 384, 512, 768 and 1,024 pixels with patches of 16.
TOKENS = (65, 197, 577, 1025, 2305, 4097)
# A processor works out few of them in the time that somebody waits.
CPU_TOKENS = (65, 197)
BATCH_TOKENS, CPU_BATCH_TOKENS = 1 << 16, 1 << 11


def main(argv: list[str]) -> int | None:
    """Runs `clip-la bench attention ...`."""
    parser = Parser(
        prog="clip-la bench attention",
        description="Times one block and the whole image tower of each attention kind, forward, and forward and "
        "backward as in a training step, by number of tokens, with its ratio to softmax (above 1: faster).",
    )
    parser.add_argument("--model", default="vit_s16", help="preset whose image tower it is (default: %(default)s)")
    parser.add_argument(
        "--attention", nargs="+", metavar="KIND", help="kinds, or plans of layers, beside softmax (default: all kinds)"
    )
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        metavar="N",
        help=f"lengths, class token included (default: {', '.join(map(str, TOKENS))}; on a CPU the first two)",
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        help=f"tokens in a batch, about (default: {BATCH_TOKENS:,}; on a CPU {CPU_BATCH_TOKENS:,})",
    )
    parser.add_argument("--eager", action="store_true", help="compile nothing (always so on a CPU)")
    add_hardware(parser)
    args = parser.parse_args(argv)
    device, dtype = hardware(args, "attention")
    on_gpu = device.type == "cuda"
    batch_tokens = args.batch_tokens or (BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS)
    if batch_tokens < 1:
        raise UserError(f"bench attention: --batch-tokens {batch_tokens} must be at least 1")

    from clip_la.bench.attention import measure, specs_of
    from clip_la.bench.table import record
    from clip_la.models.attention.kinds import list_attention

    specs = specs_of(args.model, args.attention or list_attention(), args.tokens or (TOKENS if on_gpu else CPU_TOKENS))
    rows = measure(specs, device, dtype, batch_tokens=batch_tokens, compiled=on_gpu and not args.eager)
    said = (lambda row: json.dumps(vars(row))) if args.json else _said
    record(rows, said, args.out, lines=sys.stdout, last=sys.stderr if args.json else None)
    return None


def _said(row: "AttentionRow") -> str:
    text = f"{row.model} {row.what:<5} {row.tokens:>5} tokens b{row.batch_size:<5} {row.attention:<24}"
    for name, ms, ratio in (
        ("forward", row.forward_ms, row.forward_ratio),
        ("training", row.training_ms, row.training_ratio),
    ):
        text += f"  {name} " + ("out of memory" if ms is None else f"{ms:9.3f} ms")
        text += f" ({ratio:.2f} x softmax)" if ratio else ""
    return text + (f"  {row.peak_mib:,.0f} MiB" if row.peak_mib else "")
