"""What a first run needs without a download: a tiny model, synthetic tasks, example data."""
