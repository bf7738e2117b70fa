"""Training: LightningModule, callbacks, checkpoints and the command; time is counted in samples seen, everywhere."""
