"""Units that any node can make: one input file is encoded where there is room, and its units appear in the draft.

Start with `make.py`: a task, and the function that a node calls. `adopt.py` spreads the tasks over an engine, and
checks the units that the nodes made. `duplicates.py` finds the texts of earlier files that `--dedup exact` drops.
"""
