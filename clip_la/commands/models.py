"""`clip-la models`: every preset with every attention kind, its parameters and its cost. Needs no torch."""

from clip_la.cli import Parser

GIGA = 1e9
_NUMBERS = ("pixels", "tokens", "context", "parameters", "image", "text", "GFLOPs", "image", "text")


def _parser() -> Parser:
    parser = Parser(prog="clip-la models", description="Lists the presets. GFLOPs are forward, per image-text pair.")
    parser.add_argument("names", nargs="*", metavar="MODEL", help="only these presets (default: all)")
    parser.add_argument("--attention", metavar="KIND", help="only this kind or pattern (default: every kind)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the image, if not the preset's")
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list, one object a preset and kind, on stdout"
    )
    return parser


def main(argv: list[str]) -> int | None:
    """Runs `clip-la models`."""
    options = _parser().parse_args(argv)
    import json
    import sys

    rows = table(options.names, options.attention, options.image_size)
    human = sys.stderr if options.json else sys.stdout
    for line in _lines(rows):
        print(line, file=human)
    if options.json:
        print(json.dumps(rows, indent=2))
    return None


def table(names: list[str], attention: str | None = None, image_size: int | None = None) -> list[dict]:
    """One dictionary a preset and attention kind: parameters and forward GFLOPs of each tower and of both.

    Raises UserError for an unknown name, or an attention or image size that does not fit.
    """
    from clip_la.models.attention.kinds import list_attention
    from clip_la.models.flops import flops, num_parameters
    from clip_la.models.registry import list_models, model_spec

    rows = []
    for name in names or list_models():
        for kind in [attention] if attention else list_attention():
            spec = model_spec(name, attention=kind, image_size=image_size)
            rows.append(
                {
                    "model": name,
                    "attention": spec.attention,
                    "image_size": spec.image_size,
                    "image_tokens": spec.num_image_tokens,
                    "context_length": spec.context_length,
                    "parameters": num_parameters(spec),
                    "gflops": {tower: count / GIGA for tower, count in flops(spec).items()},
                }
            )
    return rows


def _lines(rows: list[dict]) -> list[str]:
    width = max(len(row["attention"]) for row in rows) + 2
    head = f"{'model':<11}{'attention':<{width}}" + "".join(f"{column:>11}" for column in _NUMBERS)
    lines = [head]
    for row in rows:
        text = f"{row['model']:<11}{row['attention']:<{width}}"
        text += "".join(f"{row[key]:>11}" for key in ("image_size", "image_tokens", "context_length"))
        text += "".join(f"{row['parameters'][tower] / 1e6:>10.2f}M" for tower in ("total", "image", "text"))
        text += "".join(f"{row['gflops'][tower]:>11.4g}" for tower in ("total", "image", "text"))
        lines.append(text)
    return lines
