"""The endless, seeded stream of batches that can be resumed exactly."""
