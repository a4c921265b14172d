"""`bench gpu`: the claims that Inkstone makes about a GPU, each measured against a bound on the GPU at hand.

Read claims.py (a claim and its verdict) and check.py (the table of claims) first. docs/gpu.md says how to run it.
"""
