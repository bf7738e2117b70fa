"""The operators, a folder each: reference, PyTorch, Triton, launch."""
