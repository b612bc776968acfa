"""Edits of finished runs: experts are listed, taken out, renamed and brought in.

A run is the record of an experiment, so an edit makes another run folder and leaves it as it is.
Import the modules: `table` needs no torch.
"""
