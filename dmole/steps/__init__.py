"""One optimizer step: the weights of its micro-batches, and the check that it is finite."""
