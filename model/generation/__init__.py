"""Text generation: sampling, the batched engine and sessions.

Start with `engine.py`.
"""
