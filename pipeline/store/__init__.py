"""Store of artifacts: published folders that are complete, durable and never modified.

Start with `artifact.py`, which builds, publishes, finds and checks artifacts. Below it: `manifest.py` (identity and
key), `generations.py` (versions of one name), `locks.py`, and `files.py` (durable file operations).
"""
