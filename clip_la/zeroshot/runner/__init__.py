"""Images through a model: in batches, shared by all ranks, resumable after a stop."""
