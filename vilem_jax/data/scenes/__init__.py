"""The embedded data set: drawn scenes with captions."""
