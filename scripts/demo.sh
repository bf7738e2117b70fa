#!/usr/bin/env bash
# The whole pipeline on real pairs: starter corpus -> softmax and linear runs -> zero-shot -> scaling plot. Sets itself up.
# Arguments go to `clip-la demo`; see `clip-la demo --help`.
source "$(dirname "$0")/setup.sh" demo
exec clip-la demo "$@"
