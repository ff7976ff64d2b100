"""Tensor parallelism: several processes that compute each step together, of which the first is the engine."""
