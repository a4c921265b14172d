"""Tuning: training a finished run on conversations (sft) or on pairs of answers (dpo).

Start with `task.py`, which gives the trainer the batches, the loss and the validation data of a task. `packing.py`
assigns conversations to blocks, `rows.py` makes batches of them, and `replay.py` adds text of the base model.
`objective.py` has the two losses, `evaluation.py` scores held-out answers, `lora.py` trains low-rank factors instead of
all weights, and `forgetting.py` measures what the base model forgot.
"""
