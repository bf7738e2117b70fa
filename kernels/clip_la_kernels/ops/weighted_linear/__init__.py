"""Bidirectional linear attention divided by its sum of weights, keys weighted, features rotated."""
