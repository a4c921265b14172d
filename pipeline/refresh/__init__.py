"""Refresh: run the stale stages of a recipe.

Start with `refresh.py`.
"""
