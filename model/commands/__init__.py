"""Commands that need a model: train, sample, chat, serve, import and export, start, refresh and demo.

Read `train.py` first. `cli.py` registers the commands.
"""
