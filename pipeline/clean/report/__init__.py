"""The cleaning report: counts, examples, and the table that `clean` prints.

Start with `report.py`, which counts; `render.py` writes report.json and the table, `problems.py` the warnings.
"""
