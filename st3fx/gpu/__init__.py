"""Triton kernels: what a GPU does in few launches, without waiting for it."""
