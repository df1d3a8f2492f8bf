"""What st3fx writes and reads: bundles, tensors, compact weights; whole or not at all."""
