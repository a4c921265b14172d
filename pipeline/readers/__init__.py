"""Readers: bytes of any file to documents.

Start with `readers.py`: it chooses the reader of a file.
"""
