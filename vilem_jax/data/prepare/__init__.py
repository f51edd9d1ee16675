"""Data sets packed once, for many runs."""
