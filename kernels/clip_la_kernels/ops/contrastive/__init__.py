"""The contrastive loss by blocks."""
