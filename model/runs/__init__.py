"""Runs: layout, plans and checkpoints of trained models.

Start with `run.py`.
"""
