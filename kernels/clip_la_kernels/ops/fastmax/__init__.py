"""Fastmax of degree 1 and 2."""
