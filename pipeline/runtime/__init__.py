"""Services that every stage runs on: progress, ledger, worker processes, signals and redaction.

Start with `progress.py`, then `ledger.py` and `workers.py`; `signals.py` and `redaction.py` are independent.
"""
