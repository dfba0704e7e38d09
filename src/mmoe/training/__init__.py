"""How networks are trained: losses, optimizers, checkpoints and reports."""
