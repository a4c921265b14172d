"""Training: the stage, the loop and everything that it measures.

Start with `trainer.py`.
"""
