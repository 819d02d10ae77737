"""Training of the scorer."""
