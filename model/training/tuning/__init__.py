"""Tuning: training a finished run on conversations (sft) or on pairs of answers (dpo).

Start with `task.py`, which says what the trainer needs of a task. `packing.py` puts conversations into blocks,
`objective.py` has the two losses, `evaluation.py` scores held-out answers, `lora.py` trains few weights instead of all,
`forgetting.py` measures what the base model forgot.
"""
