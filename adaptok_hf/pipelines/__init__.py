"""The pipeline: encode, score, allocate, decode, and what is composed of these steps."""
