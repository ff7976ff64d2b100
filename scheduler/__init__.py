"""Which tokens run in the next step, and where their keys and values live. Pure Python: no torch, no I/O, no clock."""
