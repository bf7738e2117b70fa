"""References of the mixers beyond plain linear attention."""
