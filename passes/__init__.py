"""Graph passes: from a module to islands, a plan, a sparse model, and back."""
