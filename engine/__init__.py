"""One engine process: scheduler and forward pass on one device. Owns torch; never sees text."""
