"""Depthwise convolution of tokens, on a grid or along a causal sequence."""
