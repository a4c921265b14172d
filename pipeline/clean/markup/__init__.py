"""Parsers of marked-up sources: Kanripo, org, daizhige, wikitext, CBETA, HTML, Markdown.

Start with `detect.py`, which recognises the markup of a text. `parsed.py` is what the parsers share,
and `entities.py` the rule for character references.
"""
