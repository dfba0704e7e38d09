"""From files and frames to batches of tensors."""
