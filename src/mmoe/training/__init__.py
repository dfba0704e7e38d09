"""Training: losses, optimizers, checkpoints and reports."""
