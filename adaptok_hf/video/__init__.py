"""Files, frames and streams: reading, writing, the video processor, tokens files."""
