"""Commands of the pipeline: data, tokens and maintenance.

Read `console.py` first, then `options.py`, then `data.py`. `cli.py` registers the commands.
"""
