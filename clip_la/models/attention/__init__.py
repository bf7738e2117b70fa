"""Attention kinds: `kinds` and `pattern` are plain Python; the layers live one family a file and need torch."""
