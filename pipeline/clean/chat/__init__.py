"""Conversations as documents of a corpus: `--profile chat`.

`formats.py` parses a record of any known form into turns, `kind.py` decides whether files hold conversations or
preference pairs, and `turns.py` joins cleaned turns into documents.
"""
