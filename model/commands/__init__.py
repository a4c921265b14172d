"""Commands of the model: train, sample, serve, exchange of weights, refresh and demo.

Start with `train.py`.
"""

from model.commands import exchange, refresh, sample, serve, train

COMMANDS = (
    train.train,
    sample.sample,
    serve.serve,
    exchange.import_model,
    exchange.export,
    refresh.refresh,
    refresh.demo,
)
