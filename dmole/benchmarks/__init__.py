"""Published benchmarks: how their files are laid out and how their authors score answers."""
