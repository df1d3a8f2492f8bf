"""Training of converted models: one loop over Accelerate, and what keeps it safe."""
