"""`clip-la demo`: the whole chain on the starter corpus."""

import os
from pathlib import Path

from clip_la.cli import Parser

# The steps are small. On a quiet machine, threads that sleep at once while they wait for each other halve the speed;
# beside other busy programs, threads that spin for long lose most of it. results/LOG.md has the figures.
SPINS_BEFORE_SLEEP = "20000"


def main(argv: list[str]) -> None:
    """Runs `clip-la demo`."""
    # Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS_BEFORE_SLEEP)
    from clip_la.demo import ATTENTION, BUDGETS_SAMPLES, MODELS, run_demo

    parser = Parser(
        prog="clip-la demo",
        description="Starter corpus, softmax and linear runs of three sizes, zero-shot results, scaling plot. "
        "A second call goes on where the first was stopped.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything (default %(default)s)")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--attention", nargs="+", default=ATTENTION, metavar="KIND", help=" ".join(ATTENTION))
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=int,
        default=BUDGETS_SAMPLES,
        metavar="SAMPLES",
        help=f"samples seen at which a model is finished (default: {' '.join(map(str, BUDGETS_SAMPLES))})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default 0)")
    args = parser.parse_args(argv)
    print(
        run_demo(args.out, models=args.models, attention=args.attention, budgets=args.budgets, seed=args.seed),
    )
