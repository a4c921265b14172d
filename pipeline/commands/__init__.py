"""Commands of the pipeline, built with click.

Start with `data.py`.
"""
