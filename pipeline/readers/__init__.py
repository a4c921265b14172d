"""Read files of any supported format as documents.

Start with `readers.py`: it selects the reader of a file by its name. `compression.py` and `encoding.py` turn bytes
into text; `jsonl.py`, `parquet.py` and `chinese_poetry.py` each read one format.
"""
