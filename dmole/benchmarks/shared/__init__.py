"""What several benchmarks share: readers, rules, and the means to write a miniature."""
