"""A compact GPT: configuration, network, training, generation, exchange with other programs, and serving.

Start with `network/gpt.py`, then read `training/trainer.py` and `generation/engine.py`. `config.py`, `presets.py` and
`runs/run.py` never import torch, so that commands which only inspect a run start at once.
"""
