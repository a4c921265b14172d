"""The GPT network, its KV cache and its loss.

Start with `gpt.py`, which reads top to bottom; then `kv_cache.py` (generation), `causal_attention.py` and
`cross_entropy.py` (training).
"""
