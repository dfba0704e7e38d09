"""The networks: plain `nn.Module`s that work without Lightning."""
