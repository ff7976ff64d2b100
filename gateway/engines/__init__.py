"""Engine processes and the connections to them."""
