"""The GPT network, its KV cache and its loss.

Start with `gpt.py`, which reads top to bottom; then `kv_cache.py` (generation) and `cross_entropy.py` (training).
"""
