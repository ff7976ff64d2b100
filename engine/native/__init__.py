"""CPUs: weights of 4 and 8 bits as their file has them, in a forward pass compiled from C++."""
