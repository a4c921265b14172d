"""Text generation with a trained model.

Start with `engine.py` (batched decoding), then `sampling.py` (the next token from logits). `quantization.py` prepares
a network for fast decoding; `session.py` opens a run and generates from prompts, for the commands and the server.
"""
