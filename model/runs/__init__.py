"""Runs of trained models: their files, training plans and checkpoints.

Open `run.py` first: the layout of a run. Then `plan.py` (what to train), `continuing.py` (which finished run to
continue), `unfinished.py` (which unfinished run to resume) and `checkpoint.py` (how weights and optimizer state are
saved and verified).
"""
