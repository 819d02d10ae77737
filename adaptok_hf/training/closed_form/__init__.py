"""Initialization of tokenizer and scorer in closed form, without gradient steps."""
