"""Benchmarks: arrays and data sources in, a dict of figures out."""
