"""Commands of the model: train, sample, serve, import and export of weights, refresh and demo.

Read `train.py` first. `cli.py` registers the commands.
"""
