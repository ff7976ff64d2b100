"""Attention over the paged cache: one protocol, a slow oracle, a portable path and a fast CPU path."""
