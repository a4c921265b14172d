"""Sources of raw files: the catalogue, HTTP downloads and the raw cache.

Start with `catalogue.py` for what a name means, `download.py` for the stage.
"""
