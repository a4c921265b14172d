"""Parsers of marked-up sources: Kanripo, org, daizhige, wikitext.

Start with `detect.py`, which recognises the markup of a text. `parsed.py` is what the parsers share.
"""
