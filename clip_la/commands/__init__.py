"""One file a verb of `clip-la`: its options and one call. Heavy imports happen inside functions."""
