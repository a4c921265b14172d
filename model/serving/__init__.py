"""The HTTP server for completions.

Start with `app.py`.
"""
