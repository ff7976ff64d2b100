"""Decoders: what a model looks like (spec), and its forward pass."""
