"""Training of one plan: loop, data, optimizers, evaluation and records.

Open `trainer.py` first: the loop, from setup to the last step. It hands over to `learner.py` (one step),
`dataloader.py` (batches), `evaluator.py` and `checkpointer.py`. `stage.py` publishes the result as a run.
"""
