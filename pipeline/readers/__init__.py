"""Read files of any supported format as documents.

Start with `kinds.py`, which decides the kind of a file, and `readers.py`, which selects its reader. `compression.py`,
`archives.py` and `encoding.py` turn bytes into text; `fields.py` chooses the field of a record that holds the text.
"""
