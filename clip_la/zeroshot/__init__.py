"""Zero-shot evaluation: models, labels and data sets in, result lines out. Knows nothing of training."""
