"""Files, tensor files and seeds, for all packages."""
