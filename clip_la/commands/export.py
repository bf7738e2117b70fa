"""`clip-la export`: a softmax model as an open_clip checkpoint."""

from clip_la.cli import Parser
from clip_la.runs import TRAINED, WEIGHTS


def main(argv: list[str]) -> int | None:
    """Runs `clip-la export`."""
    parser = Parser(
        prog="clip-la export",
        description="Writes a softmax model as an open_clip checkpoint OUT.pt and its configuration OUT.json.",
    )
    parser.add_argument(
        "checkpoint", metavar="RUN_OR_CHECKPOINT", help="a run's folder (its last checkpoint) or a file"
    )
    parser.add_argument("out", metavar="OUT.pt", help="the file to write; OUT.json goes beside it")
    parser.add_argument("--weights", default=TRAINED, choices=WEIGHTS, help="as trained, or their average")
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    parser.add_argument("--json", action="store_true", help="print what was written, as JSON on stdout")
    options = parser.parse_args(argv)
    import json
    import sys
    from pathlib import Path

    from clip_la.errors import UserError
    from clip_la.models.checkpoint import load_checkpoint
    from clip_la.models.interop import export
    from clip_la.zeroshot.model.load import expand_models

    out = Path(options.out)
    if out.suffix != ".pt":
        raise UserError(f"'{out}' should end in .pt, as open_clip's checkpoints do")
    present = [path for path in (out, out.with_suffix(".json")) if path.exists()]
    if present and not options.force:
        raise UserError(f"{present[0]} is there already; --force writes over it")
    model, _ = load_checkpoint(expand_models([options.checkpoint])[0], options.weights)
    written = export(model, out)
    human = sys.stderr if options.json else sys.stdout
    # How open_clip reads the files.
    if not written["name"]:
        print(f"open_clip.add_model_config({written['config']!r})", file=human)
    name = written["name"] or Path(written["config"]).stem
    pixels = f"image_mean={model.spec.pixel_mean}, image_std={model.spec.pixel_std}"
    call = f"open_clip.create_model_and_transforms({name!r}, pretrained={written['weights']!r}, {pixels})"
    print(call, file=human)
    print(f"wrote {written['weights']} and {written['config']}", file=human)
    if options.json:
        print(json.dumps(written))
    return None
