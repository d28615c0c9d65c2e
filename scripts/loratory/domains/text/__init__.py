"""Anybody's task in text: a prompt and its completion, or a prompt and one of two answers."""
