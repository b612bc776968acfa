"""Sections of `experiments.gpu_first_half_hour`: what can only be seen on a GPU."""
