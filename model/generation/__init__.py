"""Text generation with a trained model.

Start with `engine.py` (batched decoding), then `sampling.py` (the next token from logits) and `scoring.py` (log
probabilities of the tokens of prompts). `quantization.py` prepares a network for fast decoding; `session.py` opens a
run and generates from prompts, for the commands and the server.
"""
