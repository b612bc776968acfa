"""Memory, disk and time of a run, computed from its config and the header of its base model."""
