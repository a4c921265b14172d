"""Readers of text in which each line has a time."""
