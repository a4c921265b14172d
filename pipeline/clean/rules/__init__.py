"""Cleaning rules, one per file.

Start with `order.py`, which lists the rules in the order they run, then `whitespace.py` for a short one.
`../rule.py` defines a rule.
"""
