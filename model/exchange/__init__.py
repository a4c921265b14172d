"""Import and export of weights in the formats of other programs.

Start with `architectures.py`.
"""
