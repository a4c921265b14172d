"""The cleaning report: counts, examples and the table that `clean` prints.

Start with `report.py`.
"""
