"""Conversations as documents of a corpus: `--profile chat`.

`formats.py` takes the turns out of a record of any known form, `kind.py` says whether the records of some files are
conversations or preference pairs, and `turns.py` joins cleaned turns into documents.
"""
