"""Commands of the pipeline: download to tokenize, and maintenance.

Start with `data.py`.
"""

from pipeline.commands import data, maintenance, tokens

COMMANDS = (
    data.download,
    data.decompress,
    data.clean,
    tokens.train_tokenizer,
    tokens.tokenize,
    tokens.inspect,
    maintenance.status,
    maintenance.verify,
    maintenance.rollback,
    maintenance.prune,
    maintenance.schedule,
    maintenance.doctor,
)
