"""The original authors' checkpoints, converted to ours."""
