"""The model under evaluation, what it is known by, and its text classifier."""
