"""Foreign checkpoints in and out: one file a format, each a table of names."""
