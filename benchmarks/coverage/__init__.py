"""Coverage: convert models of many libraries and compare each with its original."""
