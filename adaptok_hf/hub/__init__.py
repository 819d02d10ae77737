"""Repositories for the Hub: export, model cards, remote code."""
