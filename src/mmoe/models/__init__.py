"""Networks: plain `nn.Module`s that work outside Lightning."""
