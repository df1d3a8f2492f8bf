"""From a SPEC on the command line to a model with example inputs and weights."""
