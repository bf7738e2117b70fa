"""Exact softmax attention for short sequences."""
