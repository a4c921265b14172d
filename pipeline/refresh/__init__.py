"""Refresh: run the stale stages of a recipe.

Read `recipe.py` first, then `stages.py` (the chain), `plan.py` (which stages are stale), `refresh.py` (run them) and
`state.py` (the record of the last run).
"""
