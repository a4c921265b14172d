"""What every stage runs on: progress, worker processes, the ledger, signals, redaction.

Start with `progress.py`.
"""
