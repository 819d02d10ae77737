"""Training of the generators."""
