#!/usr/bin/env bash
# Lint, types and tests. Sets itself up. Arguments go to pytest, e.g. `scripts/test.sh tests/models -k linear`.
source "$(dirname "$0")/setup.sh" dev
# As modules: the commands' first lines hold the place of the checkout, which may have moved.
python -m ruff check .
python -m ruff format --check .
python -m mypy
exec python -m pytest "$@"
