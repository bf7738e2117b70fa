"""`clip-la convert TEACHER ...`: a trained model into one of another attention."""

from clip_la.errors import EXIT_CODE


def main(argv: list[str]) -> int:
    """Runs `clip-la convert`; returns 0, or 130 where it was stopped. Raises UserError."""
    if not argv or "--help" in argv or "-h" in argv:
        from clip_la.convert.help import help_text

        print(help_text())
        return 0 if argv else EXIT_CODE
    from clip_la.convert.cli import main as convert

    return convert(argv)
