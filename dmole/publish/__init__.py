"""What leaves a run: bundles, plain weights, adapters for other servers. No Lightning."""
