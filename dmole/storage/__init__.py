"""Files, tensors and seeds: what all rooms store with."""
