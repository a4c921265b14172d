"""Parsers of marked-up corpora: Kanripo, daizhige, wikitext.

Start with `detect.py`: it chooses the parser of a text.
"""
