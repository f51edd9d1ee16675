"""Losses, labels and edits as pure functions of arrays."""
