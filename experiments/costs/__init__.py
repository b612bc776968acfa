"""Formulas for the memory and compute that a run needs on a large base model."""
