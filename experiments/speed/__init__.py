"""The parts of `experiments.performance`: subjects, clocks, sections, page."""
