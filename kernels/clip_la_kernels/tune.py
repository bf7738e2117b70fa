"""Offline tuner: times candidate configurations on this GPU and prints a table for `ops/linear_attention/configs.py`.

    python -m clip_la_kernels.tune [--quick] [--json FILE]
    python -m clip_la_kernels.tune --as-configured

Each kernel is varied alone while the others keep their configuration; times are medians of CUDA-graph replays.
Candidates are compiled beforehand by a pool of processes, one at a time per kernel on a small input.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from clip_la_kernels import linear_attention
from clip_la_kernels.ops.linear_attention import configs
from clip_la_kernels.ops.linear_attention.configs import Config

Case = tuple[str, int, int, int, int, bool, dict[str, int]]
# (kernel, candidate, D, causal, denominator, plan)
Job = tuple[str, Config, int, bool, str, dict[str, int]]
REPEATS, CALLS = 7, 10

# (B, N, H, D, causal) of --as-configured: image towers, equal work at 4,096 and 65,536 tokens, wide causal heads,
# captions.
CONFIGURED = (
    (256, 197, 12, 64, False), (128, 577, 12, 64, False), (64, 1025, 12, 64, False), (16, 4097, 12, 64, False),
    (4, 16385, 12, 64, False), (16, 4096, 12, 64, False), (1, 65536, 12, 64, False),
    (4, 10000, 16, 128, True), (256, 77, 8, 64, True),
)  # fmt: skip
FUSED = ("forward_fused", "backward_fused")
SPLIT = ("key_state_split", "output_split", "query_grad_split", "key_grad_split")
CAUSAL = ("causal_forward", "causal_query_grad", "causal_key_grad", "causal_columns")
KERNELS_OF = {"fused": FUSED, "split": SPLIT, "causal": CAUSAL}
FORWARD = {"forward_fused", "key_state_split", "output_split", "causal_forward"}


def candidates(kernel: str, width: int) -> list[Config]:
    """Configurations worth measuring for one kernel."""
    if width == 128:
        return [Config(r, w, s) for r, w, s in itertools.product((64,), (4, 8), (1, 2, 3))] + [Config(128, 8, 1)]
    deep = [Config(64, 4, s) for s in (2, 3, 4)]
    wide = [Config(64, 8, s) for s in (2, 3, 4)]
    tall = [Config(128, 4, 2), Config(128, 8, 2)]
    more = {
        "forward_fused": [Config(64, 4, 3, 96)],
        "key_state_split": tall[:1],
        "output_split": wide[1:] + tall,
        "key_grad_split": [*wide[1:2], Config(64, 4, 3, 128)],
    }
    return deep + more.get(kernel, [*wide[:2], Config(64, 4, 2, 168), Config(64, 4, 3, 168), Config(64, 4, 3, 128)])


def cases(quick: bool) -> list[Case]:
    """(what, B, N, H, D, causal, plan) to tune on."""
    shapes: list[Case] = []
    for batch, tokens in ((256, 197), (128, 577), (64, 1025)):
        shapes.append(("fused", batch, tokens, 12, 64, False, {"splits": 0}))
    shapes += [("split", b, n, 12, 64, False, {"splits": p}) for b, n, p in (
        (128, 577, 1), (64, 1025, 1), (16, 4097, 1), (16, 4097, 2), (16, 4097, 4),
        (4, 16385, 4), (4, 16385, 8), (4, 16385, 16))]  # fmt: skip
    for columns, splits in ((64, 2), (64, 4), (128, 4)):
        shapes.append(("causal", 4, 10000, 16, 128, True, {"causal_splits": splits, "columns": columns, "whole": 1}))
    return shapes[:2] if quick else shapes


def inputs(batch: int, tokens: int, heads: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    qkv = torch.randn(batch, tokens, 3, heads, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    return qkv, torch.randn(batch, tokens, heads, width, device="cuda", dtype=torch.bfloat16)


def median_ms(call: Callable[[], Any], graph: bool = True) -> float:
    """Median milliseconds of one call, by CUDA-graph replay or launched from Python."""
    # What a first call on a stream sets up cannot be captured.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)

    def many() -> None:
        for _ in range(CALLS):
            call()

    run: Callable[[], Any] = many
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            many()
        captured.replay()
        run = captured.replay
    times = []
    for _ in range(REPEATS):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / CALLS)
    return statistics.median(times)


def passes(
    qkv: torch.Tensor, grad: torch.Tensor, denominator: str, causal: bool
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The kernels of the forward pass alone and of the backward pass alone."""
    from clip_la_kernels.ops.linear_attention import launch
    from clip_la_kernels.runtime.options import make_options

    q, k, v = qkv.detach().unbind(2)
    call = q, k, v, (None, None, None), make_options(1.0, 1.0, "l2", denominator, causal, None)
    saved = launch.forward(*call, True)[1:]
    return lambda: launch.forward(*call, True), lambda: launch.backward(*call, grad, saved, True, (True, True))


def compile_one(job: Job) -> str:
    """Worker: compiles one candidate by running it on a small input; returns the error or nothing."""
    kernel, candidate, width, causal, denominator, plan = job
    try:
        qkv, grad = inputs(2, 2304, 12, width)
        with configs.forced({kernel: candidate}, **plan):
            linear_attention(qkv, denominator=denominator, causal=causal).backward(grad)
        torch.cuda.synchronize()
    except Exception as error:
        return f"{kernel} {candidate}: {str(error)[:120]}"
    return ""


def tune(case: Case, denominator: str) -> Iterable[dict[str, Any]]:
    """Times every candidate of every kernel of one case; then the best together, forward and backward."""
    what, batch, tokens, heads, width, causal, plan = case
    qkv, grad = inputs(batch, tokens, heads, width)
    best: dict[str, tuple[float, Config]] = {}
    row = {"B": batch, "N": tokens, "H": heads, "D": width, "denominator": denominator, "structure": what, "plan": plan}
    for kernel in KERNELS_OF[what]:
        for candidate in candidates(kernel, width):
            with configs.forced({kernel: candidate}, **plan):
                try:
                    call = passes(qkv, grad, denominator, causal)[kernel not in FORWARD]
                    took = median_ms(call)
                except Exception as error:
                    print(f"{kernel} {candidate}: {str(error)[:80]}", file=sys.stderr)
                    continue
            yield {**row, "kernel": kernel, "config": list(candidate), "ms": took}
            best[kernel] = min(best.get(kernel, (1e9, candidate)), (took, candidate))
    chosen = {kernel: candidate for kernel, (_, candidate) in best.items()}
    with configs.forced(chosen, **plan):
        both = passes(qkv, grad, denominator, causal)
        yield {
            **row,
            "kernel": "best",
            "config": {k: list(c) for k, c in chosen.items()},
            "ms": [median_ms(call) for call in both],
        }


def copy_bandwidth() -> float:
    """Bytes a second of a device-to-device copy of 2 GiB, read and written counted."""
    source = torch.randn(1 << 29, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    # Not from a graph: its copy node runs at two thirds of the speed of the copy kernel.
    return 2 * source.nbytes / (median_ms(lambda: target.copy_(source), graph=False) * 1e-3)


def require_gpu(name: str) -> None:
    """Ends with code 2 and one line where there is none."""
    if not torch.cuda.is_available():
        print(f"clip_la_kernels.{name}: needs a CUDA GPU; none is visible here", file=sys.stderr)
        raise SystemExit(2)


def as_configured() -> None:
    """Prints a CSV of the kernels alone as `configs.py` has them: forward and backward launches, each replayed, and one
    after the other, which the ratio is of."""
    speed, device = copy_bandwidth(), torch.cuda.get_device_name()
    print("device,B,N,H,D,causal,denominator,forward_ms,backward_ms,both_ms,floor_ms,ratio_to_floor")
    for (batch, tokens, heads, width, causal), denominator in itertools.product(CONFIGURED, ("none", "sum")):
        qkv, grad = inputs(batch, tokens, heads, width)
        forward, backward = passes(qkv, grad, denominator, causal)
        times = [median_ms(call) for call in (forward, backward, lambda f=forward, b=backward: (f(), b()))]
        # Forward and backward move eleven tensors of the size of q at least.
        floor = 11 / 3 * qkv.nbytes / speed * 1e3
        shape = f"{device},{batch},{tokens},{heads},{width},{causal},{denominator}"
        print(shape, *(f"{ms:.4f}" for ms in (*times, floor)), f"{times[-1] / floor:.3f}", sep=",", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cases only")
    parser.add_argument("--json", help="write every time there, one JSON object a line")
    parser.add_argument("--as-configured", action="store_true", help="time the table in use, vary nothing")
    options = parser.parse_args()
    require_gpu("tune")
    if options.as_configured:
        as_configured()
        return
    todo, denominators = cases(options.quick), ("none", "sum")
    work: dict[str, Job] = {}
    for (what, _, _, _, width, causal, plan), denominator in itertools.product(todo, denominators):
        compiled = {key: min(value, 2) if "splits" in key else value for key, value in plan.items()}
        for kernel in KERNELS_OF[what]:
            for candidate in candidates(kernel, width):
                job = (kernel, candidate, width, causal, denominator, compiled)
                work[repr(job)] = job
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 15), maxtasksperchild=16) as pool:
        failures = [f for f in pool.imap_unordered(compile_one, work.values()) if f]
    print(f"{len(work)} candidates compiled, {len(failures)} failed", *failures[:10], sep="\n", flush=True)
    speed = copy_bandwidth()
    print(f"copy bandwidth {speed / 1e12:.3f} TB/s", flush=True)
    out = open(options.json, "w") if options.json else None  # noqa: SIM115
    for case, denominator in itertools.product(todo, denominators):
        for row in tune(case, denominator):
            if out:
                print(json.dumps(row), file=out, flush=True)
            if row["kernel"] == "best":
                unit = row["B"] * row["N"] * row["H"] * row["D"] * 2 / speed * 1e3
                ms = row["ms"]
                print(
                    f"{row['structure']} B={row['B']} N={row['N']} H={row['H']} D={row['D']} {denominator}"
                    f" {row['plan']}: forward"
                    f" {ms[0]:.4f} ({ms[0] / unit / 4:.2f} x), backward {ms[1]:.4f} ({ms[1] / unit / 7:.2f} x), both"
                    f" {sum(ms) / unit / 11:.3f} x {row['config']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
