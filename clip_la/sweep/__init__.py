"""Grids of training runs: expanded from a YAML file, run one after another on each GPU, resumed after a stop."""
