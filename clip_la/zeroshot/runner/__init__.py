"""Images through a model: in batches, shared by all ranks, gone on with after a stop."""
