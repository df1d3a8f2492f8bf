"""Tests of what other libraries train, each with the real library."""
