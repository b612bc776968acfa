"""Scoring files of predictions, our own and those of the benchmarks' code."""
