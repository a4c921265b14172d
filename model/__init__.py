"""A compact GPT: its configuration, network, batches, training, checkpoints, evaluation and sampling.

One noun a file. `config.py` and `run.py` never import torch, so a command that only looks at a run starts at once.
"""
