"""`clip-la convert TEACHER ...`: a trained model into one of another attention."""

from clip_la.errors import EXIT_CODE


def main(argv: list[str]) -> int:
    """Runs `clip-la convert`; returns 0, or 130 where Ctrl-C has stopped it. Raises UserError."""
    from clip_la.convert import cli

    if not argv or "--help" in argv or "-h" in argv:
        cli.make_parser().print_help()
        return 0 if argv else EXIT_CODE
    return cli.main(argv)
