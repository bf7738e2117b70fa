#!/usr/bin/env bash
# Lint, types and tests. Sets itself up. Arguments go to pytest, e.g. `scripts/test.sh tests/models -k linear`.
source "$(dirname "$0")/setup.sh" dev
# As modules: the commands' first lines hold the place of the checkout, which may have moved.
python -m ruff check .
python -m ruff format --check .
python -m mypy
# A process a core, each with the tests of whole files, whose fixtures are made once; one thread each, so that they do not
# wait for each other. Files of many processes come early in the order, or the last of them would be waited for.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest --numprocesses "${CLIP_LA_TEST_PROCESSES:-auto}" --maxprocesses 8 --dist loadfile "$@"
