"""The curriculum: the size of the update of each modality during training."""
