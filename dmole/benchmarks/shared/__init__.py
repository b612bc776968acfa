"""Readers, rules and miniature helpers shared by several benchmarks."""
