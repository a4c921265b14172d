"""Cleaning: texts in, documents out, and of every rule what it did. Nothing here opens a file, but for tables.

`page.py` takes a page of texts through the rules of `rules.py`, which a profile and the options choose; each rule is
a small room of its own (`quotes.py`, `notes.py`, ...). A page is an array of UTF-16 units (`codes.py`), of which most
rules look at a few in a hundred. `sentences.py` says where sentences end and `layout.py` where documents do;
`filters.py` and `duplicates.py` say which of them stay, `lines.py` writes their sentences, and `report.py` says what
became of all of it.
`pipeline/cleaning.py` is a worker's part of the stage, and `pipeline/corpus.py` the stage.
"""
