"""`clip-la train ...`: train image and text towers on shards."""

from clip_la.errors import EXIT_CODE


def main(argv: list[str]) -> int:
    """Runs `clip-la train OPTIONS`; returns 0, or 130 where the run was stopped. Raises UserError."""
    if not argv or "--help" in argv or "-h" in argv:
        from clip_la.train.help import help_text

        print(help_text())
        return 0 if argv else EXIT_CODE
    from clip_la.train.cli import main as train

    return train(argv)
