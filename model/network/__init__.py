"""The GPT network and its parts.

Start with `gpt.py`, which reads top to bottom.
"""
