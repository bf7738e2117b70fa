#!/usr/bin/env bash
# Lint, types and tests. Sets itself up. Arguments go to pytest, e.g. `scripts/test.sh tests/models -k linear`.
source "$(dirname "$0")/setup.sh" dev
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
