"""The mathematics and machinery that all else stands on, with torch and the standard library."""
