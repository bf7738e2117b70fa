"""`clip-la models`: every preset with every attention kind, its parameters and its cost. Needs no torch."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_la.cli import Parser

if TYPE_CHECKING:
    from clip_la.models.spec import ModelSpec

GIGA = 1e9
_NUMBERS = ("pixels", "tokens", "context", "parameters", "image", "text", "GFLOPs", "image", "text")
# --speed: times that a median is taken of.
SPEED_SAMPLES = 5


def main(argv: list[str]) -> int | None:
    """Runs `clip-la models`."""
    parser = Parser(prog="clip-la models", description="Lists the presets. GFLOPs are forward, per image-text pair.")
    parser.add_argument("names", nargs="*", metavar="MODEL", help="only these presets (default: all)")
    parser.add_argument(
        "--attention",
        metavar="PLAN",
        help="only this kind or plan of layers, as in linear_mean,softmax@7,11; IMAGE/TEXT for one a tower"
        " (default: every kind; kinds without a causal form have softmax in the text tower)",
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the image, if not the preset's")
    parser.add_argument("--patch-size", type=int, metavar="PIXELS", help="side of a patch, if not the preset's")
    parser.add_argument("--kinds", action="store_true", help="list the attention kinds and their options instead")
    parser.add_argument(
        "--speed",
        type=int,
        metavar="BATCH",
        help="also measure pairs/s here, compiled and in bf16 on a GPU: forward, and forward and backward",
    )
    parser.add_argument(
        "--start",
        action="store_true",
        help="also measure the image tower at its initial weights: what attention adds to the residual stream in the"
        " first, middle and last layer, the stream itself in the last, gradients of q and k over that of v",
    )
    parser.add_argument(
        "--trained",
        nargs="+",
        metavar="RUN",
        help="instead of presets these runs (their last checkpoints) or checkpoints, with what --start measures, at"
        " trained weights; --image-size interpolates their positions",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list, one object a preset and kind, on stdout"
    )
    options = parser.parse_args(argv)
    import json
    import sys

    rows = _rows(options)
    lines = _kind_lines(rows) if options.kinds else _lines(rows)
    human = sys.stderr if options.json else sys.stdout
    for line in lines:
        print(line, file=human)
    if options.json:
        print(json.dumps(rows, indent=2))
    return None


def _rows(options: argparse.Namespace) -> list[dict]:
    """What is asked for. Raises UserError for options that do not go with it."""
    from clip_la.errors import UserError

    def given(*others: str) -> list[str]:
        return [name for name in others if getattr(options, name)]

    if options.kinds:
        if needless := given("names", "attention", "image_size", "patch_size", "speed", "start", "trained"):
            raise UserError(f"--kinds lists all kinds, whatever the model: leave out {', '.join(needless)}")
        return kinds()
    if options.trained:
        return trained(options.trained, options.image_size, given("names", "attention", "patch_size", "speed", "start"))
    return table(options.names, options.attention, options.image_size, options.patch_size, options.speed, options.start)


def kinds() -> list[dict]:
    """One dictionary an attention kind: its name, what it is, its options with their defaults, whether it is causal.

    `grows_with_tokens` is of the kind at its defaults: such a model is tied to the image size that it was trained at.
    """
    from clip_la.models.attention.kinds import attention_kind, list_attention
    from clip_la.models.attention.options import OneOf

    rows = []
    for name in list_attention():
        kind = attention_kind(name)
        options = {
            option: f"{o.default} of {'|'.join(o.choices)}" if isinstance(o, OneOf) else f"{o.default:g}"
            for option, o in kind.options.items()
        }
        grows = kind.grows_with_tokens({option: each.default for option, each in kind.options.items()})
        row = {"kind": name, "summary": kind.summary, "options": options, "causal": kind.causal}
        rows.append(row | {"grows_with_tokens": grows})
    return rows


def _plans(attention: str | None) -> list[tuple[str, str]]:
    """(image, text) attention of each row."""
    from clip_la.models.attention.kinds import attention_kind, list_attention

    # A text tower cannot have a kind without a causal form: softmax stands in for it.
    if attention is None:
        return [(kind, kind if attention_kind(kind).causal else "softmax") for kind in list_attention()]
    image, slash, text = attention.partition("/")
    return [(image, text if slash else image)]


def table(
    names: list[str],
    attention: str | None = None,
    image_size: int | None = None,
    patch_size: int | None = None,
    batch: int | None = None,
    start: bool = False,
) -> list[dict]:
    """One dictionary a preset and attention: parameters and forward GFLOPs of each tower and of both.

    With a `batch`, measured pairs per second too; with `start`, what start.py measures. Without names, presets that the
    attention or sizes do not fit are left out, and stderr says so. Raises UserError for an unknown name, or an
    attention, size or batch that does not fit what is named, or any preset.
    """
    import sys

    from clip_la.errors import UserError
    from clip_la.models.registry import list_models, model_spec

    if batch is not None and batch < 1:
        raise UserError(f"--speed {batch}: give the number of pairs in a batch, 1 or more")
    rows: list[dict] = []
    unfit: list[UserError] = []
    for name in names or list_models():
        for image, text in _plans(attention):
            try:
                spec = model_spec(
                    name, image_attention=image, text_attention=text, image_size=image_size, patch_size=patch_size
                )
            except UserError as error:
                if names:
                    raise
                unfit.append(error)
                continue
            row = _row(spec)
            if batch is not None:
                row["pairs_per_second"] = _measure(spec, batch)
            if start:
                from clip_la.models.start import start_scales

                row["start"] = start_scales(spec)
            rows.append(row)
    if not rows:
        raise unfit[0]
    # A plan for twelve layers leaves the small presets out; only where nothing fits is that an error.
    for left_out in unfit:
        print(f"left out: {left_out}", file=sys.stderr)
    return rows


def _row(spec: "ModelSpec") -> dict:
    """What a preset or a trained model is, and its cost."""
    from clip_la.models.flops import flops, num_parameters

    return {
        "model": spec.name,
        "attention": spec.attention,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "image_tokens": spec.num_image_tokens,
        "context_length": spec.context_length,
        "parameters": num_parameters(spec),
        "gflops": {tower: count / GIGA for tower, count in flops(spec).items()},
    }


def trained(paths: list[str], image_size: int | None = None, others: Sequence[str] = ()) -> list[dict]:
    """As `table`, of runs or checkpoints ("run": as given), with what start.py measures at their weights as "start".

    Raises UserError for what is no run or checkpoint, an image size that does not fit, and `others`: names of options
    that were given and are for presets.
    """
    from clip_la.errors import UserError
    from clip_la.models.checkpoint import load_checkpoint
    from clip_la.models.resize import at_image_size
    from clip_la.models.start import scales
    from clip_la.zeroshot.model.load import expand_models

    if others:
        raise UserError(f"--trained has models of its own: leave out {', '.join(others)}")
    rows = []
    for text in paths:
        (path,) = expand_models([text])
        model, _ = load_checkpoint(path)
        model = model.float() if image_size is None else at_image_size(model.float(), image_size)
        # Runs of a sweep differ by seed or rate alone: only their names tell them apart.
        rows.append({**_row(model.spec), "start": scales(model), "run": text})
    return rows


def _measure(spec: "ModelSpec", batch: int) -> dict[str, float]:
    """Pairs per second of both towers, {"forward", "training"}: the median of some calls, captions of full length."""
    import torch

    from clip_la.bench.timing import quantiles
    from clip_la.models.clip import model_from_spec

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_from_spec(spec, seed=0).to(device)
    # Uncompiled, small models would be measured by how fast Python launches their kernels.
    if device.type == "cuda":
        model.image.compile()
        model.text.compile()
    images = torch.randn(batch, 3, spec.image_size, spec.image_size, device=device)
    tokens = torch.randint(1, spec.vocab_size, (batch, spec.context_length), device=device)

    def forward() -> None:
        with torch.no_grad():
            model(images, tokens)

    def training() -> None:
        image_features, text_features, scale = model(images, tokens)
        (scale * image_features * text_features).sum().backward()
        model.zero_grad()

    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return {
            name: 1e3 * batch / quantiles(call, device=device, samples=SPEED_SAMPLES)[0]
            for name, call in (("forward", forward), ("training", training))
        }


def _kind_lines(rows: list[dict]) -> list[str]:
    """Each kind in two lines: what it is, and its options with their defaults and values."""
    lines = []
    for row in rows:
        own = []
        for name, value in row["options"].items():
            default, of, choices = value.partition(" of ")
            own.append(f"{name}={default} ({choices})" if of else f"{name}={default}")
        grows = "; its result grows with the number of tokens" if row["grows_with_tokens"] else ""
        lines += [f"{row['kind']}: {row['summary']}{grows}", f"    {', '.join(own)}"]
    return [*lines, "", "Each option with its default (and its values): --attention 'rala(conv=3,gate=none)'"]


def _lines(rows: list[dict]) -> list[str]:
    width = max(len(row["attention"]) for row in rows) + 2
    head = f"{'model':<11}{'attention':<{width}}" + "".join(f"{column:>11}" for column in _NUMBERS)
    if rows and "pairs_per_second" in rows[0]:
        head += f"{'pairs/s':>11}{'training':>11}"
    if rows and "start" in rows[0]:
        head += "".join(f"{name.replace('gradient', 'grad'):>15}" for name in rows[0]["start"])
    if rows and "run" in rows[0]:
        head += "  run"
    lines = [head]
    for row in rows:
        text = f"{row['model']:<11}{row['attention']:<{width}}"
        text += "".join(f"{row[key]:>11}" for key in ("image_size", "image_tokens", "context_length"))
        text += "".join(f"{row['parameters'][tower] / 1e6:>10.2f}M" for tower in ("total", "image", "text"))
        text += "".join(f"{row['gflops'][tower]:>11.4g}" for tower in ("total", "image", "text"))
        text += "".join(f"{speed:>11.0f}" for speed in row.get("pairs_per_second", {}).values())
        text += "".join(f"{scale:>15.3f}" for scale in row.get("start", {}).values())
        lines.append(f"{text}  {row['run']}" if "run" in row else text)
    return lines
