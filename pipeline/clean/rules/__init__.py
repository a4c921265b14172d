"""Cleaning rules, one per file.

Start with `headings.py` for a typical one; `../rule.py` defines what a rule is.
"""
