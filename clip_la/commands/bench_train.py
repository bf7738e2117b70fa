"""`clip-la bench train`: training steps of this machine, ours and open_clip's, as a table."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clip_la.cli import Parser
from clip_la.errors import UserError

if TYPE_CHECKING:
    import torch

    from clip_la.bench.train import StepRow
    from clip_la.bench.train_steps import StepCase

MODES = ("eager", "block", "tower", "graphs", "tower_graphs")
PRECISIONS = ("auto", "float32", "bfloat16")
LENGTHS = ("full", "laion")


def main(argv: list[str]) -> int | None:
    """Runs `clip-la bench train ...`."""
    args = _parser().parse_args(argv)
    _check(args)

    import torch

    from clip_la import distributed as ranks
    from clip_la.bench.train import cases_of
    from clip_la.bench.train_steps import spec_of

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("bench train: --device cuda: PyTorch finds no GPU here; give cpu")
    on_gpu = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    if any(mode.endswith("graphs") for mode in args.modes) and not on_gpu:
        raise UserError("bench train: --modes graphs needs a GPU; leave it out")
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
        with_peer=not args.no_open_clip,
    )
    for case in cases:
        spec_of(case)  # whatever is wrong is said before anything is measured
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    _join(device)
    try:
        _measure(cases, device, args)
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
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["block"], help="what is compiled together")
    parser.add_argument("--text-groups", nargs="+", type=int, default=[1], help="groups of captions by length")
    parser.add_argument("--batch-size", type=int, default=256, help="pairs in a batch of each GPU")
    parser.add_argument("--micro-batches", type=int, default=1, help="parts our batches are worked out in (default 1)")
    parser.add_argument("--grad-checkpointing", action="store_true", help="recompute activations")
    parser.add_argument(
        "--narrow-residual", action="store_true", help="blocks' results added up in bfloat16, as open_clip's are"
    )
    parser.add_argument("--no-open-clip", action="store_true", help="time ours alone")
    parser.add_argument("--steps", type=int, default=20, help="steps in a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, whose median counts (default %(default)s)")
    parser.add_argument("--cold", action="store_true", help="compile each case anew, without the cache on the disk")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: bfloat16 on a GPU, else float32")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument("--out", type=Path, help="table to write, CSV, anew with each row")
    parser.add_argument("--json", action="store_true", help="print each row as a line of JSON")
    return parser


def _check(args: argparse.Namespace) -> None:
    for name in ("batch_size", "steps", "rounds"):
        if getattr(args, name) < (2 if name == "batch_size" else 1):
            raise UserError(f"bench train: --{name.replace('_', '-')} {getattr(args, name)} is too small")
    for text in args.text:
        if text not in LENGTHS and not (text.isdecimal() and int(text) >= 3):
            raise UserError(f"bench train: --text {text}: give {', '.join(LENGTHS)} or a number of tokens from 3 on")
    if not 1 <= args.micro_batches <= args.batch_size:
        raise UserError(f"bench train: --micro-batches {args.micro_batches} must be from 1 to the batch size")
    wrong = [n for n in args.text_groups if not 1 <= n <= args.batch_size]
    if wrong:
        raise UserError(f"bench train: --text-groups {wrong[0]} must be from 1 to the batch size")


def _join(device: "torch.device") -> None:
    """Meets the other processes that torchrun started, if there are any."""
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def _measure(cases: "list[StepCase]", device: "torch.device", args: argparse.Namespace) -> None:
    import torch

    from clip_la.bench.kernel_plot import write_table
    from clip_la.bench.train import measure
    from clip_la.train.hardware import is_first_process

    is_wide = args.precision == "float32" or (args.precision == "auto" and device.type == "cpu")
    dtype = torch.float32 if is_wide else torch.bfloat16
    done: list[StepRow] = []
    for row in measure(cases, device, dtype, steps=args.steps, rounds=args.rounds, cold=args.cold):
        done.append(row)
        if not is_first_process():
            continue
        print(json.dumps(vars(row)) if args.json else _said(row), flush=True)
        if args.out:
            write_table(args.out, done)
    if args.out and is_first_process():
        print(f"wrote {args.out}: {len(done)} rows", file=sys.stderr if args.json else sys.stdout)


def _said(row: "StepRow") -> str:
    what = f"{row.model} {row.image_size} px, text {row.text}, b{row.batch_size}"
    what += f" x {row.gpus}" if row.gpus > 1 else ""
    who = row.provider if row.provider == "open_clip" else f"{row.attention}, {row.provider}, groups {row.text_groups}"
    who += f", {row.micro_batches} parts" if row.provider != "open_clip" and row.micro_batches > 1 else ""
    if row.pairs_per_s is None:
        return f"{what}: {who}: out of memory"
    parts = [f"{row.pairs_per_s:,.0f} pairs/s", f"{row.step_ms:.1f} ms"]
    parts += [f"{row.ratio_to_open_clip:.2f} x open_clip"] if row.ratio_to_open_clip else []
    parts += [f"MFU {row.mfu:.1%}"] if row.mfu else []
    parts += [f"{row.peak_gib:.1f} GiB"] if row.peak_gib else []
    return f"{what}: {who}: " + ", ".join([*parts, f"start {row.start_s:.1f} s"])
