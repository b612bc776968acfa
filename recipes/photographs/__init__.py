"""A base model for photographs: an encoder pretrained on ImageNet before SmolLM2-135M-Instruct."""
