"""Published benchmarks: the layouts of their files and the scoring rules of their authors."""
