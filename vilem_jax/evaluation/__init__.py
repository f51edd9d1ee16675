"""Benchmarks: arrays and data sources in, a dict of metrics out."""
