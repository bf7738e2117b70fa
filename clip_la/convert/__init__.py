"""From a trained model to one of another attention: weights copied, attention matched, features matched."""
