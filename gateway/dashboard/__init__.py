"""The live page and what it is fed with."""
