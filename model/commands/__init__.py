"""Commands of the model, built with click.

Start with `train.py`.
"""
