"""Grids of training runs: expanded from a YAML file, run one after another on each GPU, gone on with after a stop."""
