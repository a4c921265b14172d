"""Cleaning: text in, text out. Nothing here opens a file.

`headings.py` finds the chapters, `rules.py` mends characters in a fixed order, `sentences.py` splits, and
`profiles.py` says which of them a kind of source needs. `pipeline/corpus.py` is the stage that feeds them.
"""
