"""`clip-la bench kernels`: the attention kernels against their peers on this GPU, as a table and a plot."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clip_la.cli import Parser
from clip_la.errors import UserError

if TYPE_CHECKING:
    from clip_la.bench.providers import Provider, Shape

# Asks, among the providers of --only, for the table of the losses over all pairs.
LOSS = "contrastive"


def main(argv: list[str]) -> int | None:
    """Runs `clip-la bench kernels ...`."""
    parser = Parser(
        prog="clip-la bench kernels",
        description="Checks the attention kernels against the reference, then times them and their peers on this GPU: "
        "median, 20th and 80th percentile of forward and forward + backward, bytes a second, ratio to the "
        "floor of the copy bandwidth, memory.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/kernels.csv"),
        help="table to write; beside it lie the plot (.png, .svg) and contrastive.csv, the table of the loss",
    )
    parser.add_argument("--quick", action="store_true", help="two small shapes only")
    parser.add_argument("--only", nargs="+", metavar="PROVIDER", help=f"time these providers only; {LOSS}: the loss")
    parser.add_argument("--tokens", nargs="+", type=int, metavar="N", help="shapes of these sequence lengths only")
    parser.add_argument("--plot-only", action="store_true", help="draw the plot of an existing table again")
    args = parser.parse_args(argv)
    # Whatever is wrong is said before anything is measured or written.
    chosen, shapes = ([], []) if args.plot_only else _chosen(args)
    if args.plot_only and not args.out.exists():
        raise UserError(f"bench kernels: {args.out} does not exist; leave --plot-only away to measure it")
    if not args.plot_only:
        import torch

        if not torch.cuda.is_available() and args.only != [LOSS]:
            text = "needs a CUDA GPU; none is visible here (--only contrastive runs on a CPU too)"
            raise UserError(f"bench kernels: {text}")
        if LOSS in args.only if args.only else not (args.quick or args.tokens):
            _measure_loss(args.out.with_name("contrastive.csv"))
    if chosen:
        _measure(chosen, shapes, args.out)
    if chosen or args.plot_only:
        from clip_la.bench.kernel_plot import draw

        for path in draw(args.out):
            print(f"wrote {path}")
    return None


def _chosen(args: argparse.Namespace) -> "tuple[list[Provider], list[Shape]]":
    """The providers of attention that --only names and the shapes of --tokens, all by default; UserError for a name
    that is nobody's or a length that no shape has."""
    from clip_la.bench import kernels, providers

    known = providers.everyone()
    names = {LOSS, *(p.name for p in known)}
    unknown = [name for name in args.only or () if name not in names]
    if unknown:
        raise UserError(f"bench kernels: no provider named {', '.join(unknown)}; known: {', '.join(sorted(names))}")
    everything = kernels.QUICK_SHAPES if args.quick else kernels.ALL_SHAPES
    lengths = {s.tokens for s in everything}
    unknown = [str(n) for n in args.tokens or () if n not in lengths]
    if unknown:
        there = ", ".join(map(str, sorted(lengths)))
        raise UserError(f"bench kernels: no shape has --tokens {', '.join(unknown)}; there are {there}")
    if args.only == [LOSS] and args.tokens:
        raise UserError(f"bench kernels: --tokens chooses shapes of attention; --only {LOSS} times none")
    chosen = [p for p in known if not args.only or p.name in args.only]
    return chosen, [s for s in everything if not args.tokens or s.tokens in args.tokens]


def _measure(chosen: "list[Provider]", shapes: "list[Shape]", out: Path) -> None:
    import torch

    from clip_la.bench import kernels
    from clip_la.bench.table import record
    from clip_la.bench.timing import copy_bandwidth

    for provider, shape in [(p, s) for p in chosen if p.own for s in shapes if s.tokens <= kernels.GATE_TOKENS]:
        kernels.check(provider, shape, torch.bfloat16)
    print("every kernel agrees with the reference", file=sys.stderr, flush=True)
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copy bandwidth {bandwidth / 1e12:.3f} TB/s", file=sys.stderr, flush=True)
    started = time.monotonic()

    def said(row: kernels.KernelRow) -> str:
        return (
            f"{time.monotonic() - started:5.0f} s  {row.provider:28} {row.denominator:5} B={row.B} N={row.N} H={row.H}"
            f" D={row.D} {row.mode:17} {row.timing:6}"
            f" {row.median_ms:9.4f} ms  {row.ratio_to_floor:6.2f} x floor  {row.peak_mib:8.0f} MiB"
        )

    record(kernels.rows(shapes, chosen, torch.bfloat16, bandwidth), said, out)


def _measure_loss(out: Path) -> None:
    """The losses over all pairs, in a table of their own beside the attention's."""
    import torch

    from clip_la.bench import contrastive
    from clip_la.bench.table import record
    from clip_la.train.hardware import fast_matmul

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    # Training hands over float32 features, others may have theirs in bfloat16.
    dtypes = (torch.bfloat16, torch.float32) if on_gpu else (torch.float32,)

    def said(row: contrastive.LossRow) -> str:
        memory = "" if row.peak_mib is None else f"  {row.peak_mib:8.0f} MiB"
        return (
            f"{row.loss:12} {row.provider:14} {row.dtype:8} {row.rows} x {row.columns}, {row.width} wide {row.mode:17}"
            f" {row.median_ms:9.3f} ms{memory}"
        )

    with fast_matmul():
        for dtype in dtypes:
            contrastive.check(dtype, device)
        shapes = contrastive.SHAPES if on_gpu else contrastive.CPU_SHAPES
        record(contrastive.measure(dtypes, device, shapes), said, out)
