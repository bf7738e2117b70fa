"""Captions of samples, and their tokens."""
