"""What the operators share: dispatch, launching, device functions."""
