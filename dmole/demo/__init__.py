"""Demonstration without downloads: a tiny model, synthetic tasks and example data."""
