# Sourced by demo.sh and test.sh, with the extras to install in $1: makes a .venv in the checkout once, and brings it up
# to date when pyproject.toml has changed. CLIP_LA_TORCH names other builds of torch (a CPU wheel, another CUDA).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CLIP_LA_TORCH="${CLIP_LA_TORCH:-torch==2.14.1 torchvision==0.29.1}"
extras="$1"
stamp=".venv/.clip_la-$extras"
wanted="$(cat pyproject.toml; echo "$CLIP_LA_TORCH"; pwd)"

if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "setting up .venv with clip_la[$extras] (once; a few minutes, most of it is torch)" >&2
    python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "clip_la needs Python 3.11 or newer; $("$python" --version 2>&1) found. Set PYTHON to another interpreter." >&2
        exit 2
    }
    # One that was stopped before it had pip is made again.
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv
    # torch first and by itself, so that the rest is resolved against this build.
    # shellcheck disable=SC2086
    .venv/bin/python -m pip install --quiet --disable-pip-version-check $CLIP_LA_TORCH
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
    printf '%s\n' "$wanted" >"$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
