"""`clip-la bench train`: training steps of this machine, ours and open_clip's, as a table."""

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from clip_la.cli import Parser
from clip_la.commands.bench import add_hardware, hardware
from clip_la.errors import UserError

if TYPE_CHECKING:
    from clip_la.bench.train import StepRow

MODES = ("eager", "block", "tower", "graphs", "tower_graphs")
LENGTHS = ("full", "laion")


def main(argv: list[str]) -> int | None:
    """Runs `clip-la bench train ...`."""
    args = _parser().parse_args(argv)
    _check(args)
    device, dtype = hardware(args, "train")
    args.modes = args.modes or ["eager" if device.type == "cpu" else "graphs"]
    if any(mode.endswith("graphs") for mode in args.modes) and device.type == "cpu":
        raise UserError("bench train: --modes graphs needs a GPU; leave it out")

    import torch
    import torch.distributed as dist

    from clip_la import distributed as ranks
    from clip_la.bench.table import record
    from clip_la.bench.train import cases_of, measure
    from clip_la.train.hardware import is_first_process

    cases = cases_of(
        args.models,
        args.attention,
        args.image_size,
        args.text,
        args.modes,
        args.text_groups,
        batch_size=args.batch_size,
        micro_batches=args.micro_batches,
        checkpointing=args.grad_checkpointing,
        narrow_residual=args.narrow_residual,
        patch_dropout=args.patch_dropout,
        reduction=args.reduction,
        with_peer=not args.no_open_clip,
    )
    for case in cases:
        _ = case.spec  # whatever is wrong is said before anything is measured
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The other processes that torchrun started, if there are any.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        rows = measure(cases, device, dtype, steps=args.steps, rounds=args.rounds, cold=args.cold)
        if is_first_process():
            said = (lambda row: json.dumps(vars(row))) if args.json else _said
            record(rows, said, args.out, lines=sys.stdout, last=sys.stderr if args.json else None)
        else:
            for _ in rows:
                pass  # measured together, said and written by the first
    finally:
        ranks.leave()
    return None


def _parser() -> Parser:
    parser = Parser(
        prog="clip-la bench train",
        description="Times training steps on batches that lie on the device: open_clip's compiled step, then ours, for "
        "all combinations of what is given: pairs a second, ratio to open_clip, share of the peak arithmetic, peak "
        "memory, seconds until all lengths are compiled. Under torchrun on several GPUs together.",
    )
    parser.add_argument("--models", nargs="+", default=["vit_b16"], metavar="NAME", help="presets (default: vit_b16)")
    parser.add_argument("--attention", nargs="+", default=["softmax", "linear"], metavar="KIND", help="kinds, patterns")
    parser.add_argument("--image-size", nargs="+", type=int, help="pixels (default: the preset's)")
    parser.add_argument(
        "--text",
        nargs="+",
        default=["full"],
        help="caption lengths: full, laion (as on the web), or tokens as a number",
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        help="what is compiled together (default: as in a run, graphs on a GPU, eager on a CPU)",
    )
    parser.add_argument("--text-groups", nargs="+", type=int, default=[1], help="groups of captions by length")
    parser.add_argument("--batch-size", type=int, default=256, help="pairs in a batch of each GPU")
    parser.add_argument("--micro-batches", type=int, default=1, help="parts our batches are worked out in (default 1)")
    parser.add_argument(
        "--grad-checkpointing",
        nargs="?",
        choices=(True, "selective"),
        default=False,
        const=True,
        help="recompute activations; selective: the cheap ones (open_clip: all)",
    )
    parser.add_argument(
        "--narrow-residual", action="store_true", help="add the blocks' results up in bfloat16, as open_clip does"
    )
    parser.add_argument(
        "--patch-dropout", type=float, default=0.0, help="share of the patches left out, by both (default: none)"
    )
    parser.add_argument(
        "--reduction",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what several GPUs send our gradients in (default %(default)s)",
    )
    parser.add_argument("--no-open-clip", action="store_true", help="time ours alone")
    parser.add_argument("--steps", type=int, default=20, help="steps in a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, whose median counts (default %(default)s)")
    parser.add_argument("--cold", action="store_true", help="compile each case anew, without the cache on the disk")
    add_hardware(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    for name in ("batch_size", "steps", "rounds"):
        if getattr(args, name) < (2 if name == "batch_size" else 1):
            raise UserError(f"bench train: --{name.replace('_', '-')} {getattr(args, name)} is too small")
    if not 0 <= args.patch_dropout < 1:
        raise UserError(f"bench train: --patch-dropout {args.patch_dropout} must be from 0 to below 1")
    for text in args.text:
        if text not in LENGTHS and not (text.isdecimal() and int(text) >= 3):
            raise UserError(f"bench train: --text {text}: give {', '.join(LENGTHS)} or a number of tokens from 3 on")
    if not 1 <= args.micro_batches <= args.batch_size:
        raise UserError(f"bench train: --micro-batches {args.micro_batches} must be from 1 to the batch size")
    wrong = [n for n in args.text_groups if not 1 <= n <= args.batch_size]
    if wrong:
        raise UserError(f"bench train: --text-groups {wrong[0]} must be from 1 to the batch size")


def _said(row: "StepRow") -> str:
    if row.pairs_per_s is None:
        return f"{row.case}: out of memory"
    parts = [f"{row.pairs_per_s:,.0f} pairs/s", f"{row.step_ms:.1f} ms"]
    parts += [f"{row.ratio_to_open_clip:.2f} x open_clip"] if row.ratio_to_open_clip else []
    parts += [f"MFU {row.mfu:.1%}"] if row.mfu else []
    parts += [f"{row.peak_gib:.1f} GiB"] if row.peak_gib else []
    return f"{row.case}: " + ", ".join([*parts, f"start {row.start_s:.1f} s"])
