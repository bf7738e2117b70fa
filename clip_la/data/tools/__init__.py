"""What the `clip-la data` commands do: pack, verify, read, show."""
