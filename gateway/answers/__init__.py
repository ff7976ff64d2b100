"""From an engine's outputs to the parts of an answer."""
