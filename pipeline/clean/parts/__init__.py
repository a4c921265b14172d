"""A corpus is cleaned in parts: consecutive input files of about 64 MiB together, or one larger file.

`part.py` divides the inputs and describes a part, `builder.py` makes parts, each in a folder of its own, `writer.py`
writes the files of one, and `assembly.py` joins them to the corpus. A part depends only on its files, so a killed
`clean` makes only those that are missing. With --dedup a part is first written as candidates by `candidates.py`; when
all are complete, `unique.py` finds the duplicates among them and writes the files without.
"""
