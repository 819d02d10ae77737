"""The command line: `adaptok <verb>`."""
