"""The table of all settings of a model and of its training: the values that each may have, its unit and its meaning.

Checks, error messages, `inkstone presets --settings` and the table in docs/training.md are made from it. The types and
defaults are those of the fields in config.py. All ranges are finite, since JSON has no infinity.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; whole numbers if both are integers. `below` excludes `high`, `zero` adds 0.

    NaN is in no range.
    """

    low: float
    high: float
    below: bool = False
    zero: bool = False

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int)

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else int | float):
            return False
        is_within = self.low <= value < self.high or (value == self.high and not self.below)
        return is_within or (self.zero and value == 0)

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "0, or a number" if self.zero else "a number"
        return f"{kind} from {_format(self.low)} to {'below ' if self.below else ''}{_format(self.high)}"


@dataclass(frozen=True)
class Setting:
    """A setting: its `meaning` in one line, its values (None: true and false), and the unit of a number."""

    meaning: str
    values: Range | tuple[str, ...] | None = None
    unit: str = ""

    def allows(self, value: object) -> bool:
        """True if the setting may have this value."""
        return isinstance(value, bool) if self.values is None else value in self.values

    @property
    def expected(self) -> str:
        """The values in words."""
        if self.values is None:
            return "true or false"
        values = str(self.values) if isinstance(self.values, Range) else f"one of {', '.join(self.values)}"
        return f"{values}{self.unit and ' '}{self.unit}"


def _format(number: float) -> str:
    return f"{int(number):,}" if isinstance(number, int) or number == int(number) < 1e9 else f"{number:g}"


_MAX_INT = (1 << 31) - 1
_FRACTION, _BELOW_ONE = Range(0.0, 1.0), Range(0.0, 1.0, below=True)
_RATE = Range(1e-30, 1e30)  # beyond it, products in float32 are 0 or infinite from the first step on
_DECAY = Range(0.0, 1000.0)
_COUNT = Range(0, _MAX_INT)

SETTINGS: dict[str, Setting] = {
    "vocab_size": Setting("rows of the embedding; 0: the vocabulary size of the tokenizer", _COUNT),
    "block_size": Setting("context length of the model", Range(1, 1 << 20), "tokens"),
    "layers": Setting("blocks of attention and feed-forward", Range(0, 10_000)),
    "heads": Setting("query heads of each attention layer", Range(1, 1 << 16)),
    "width": Setting("dimensions of the residual stream, a multiple of `heads`", Range(1, 1 << 20)),
    "dropout": Setting(
        "dropout probability on the embeddings and on the output of each attention and feed-forward layer", _BELOW_ONE
    ),
    "attention_dropout": Setting(
        "dropout probability on the attention weights, without the fast kernel on a CPU", _BELOW_ONE
    ),
    "last_dropout": Setting("dropout probability on the input of the output head", _BELOW_ONE),
    "positions": Setting("GPT-2's learned positions, RoPE (Su et al. 2021), or none", ("learned", "rotary", "none")),
    "rotary_base": Setting("base of the rotary positions", Range(1.001, 1e12)),
    "norm": Setting("layer norm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019)", ("layer", "rms")),
    "activation": Setting(
        "GELU in GPT-2's tanh form or by the error function, ReLU, squared ReLU (So et al. 2021) or SwiGLU "
        "(Shazeer 2020)",
        ("gelu", "gelu_erf", "relu", "relu2", "swiglu"),
    ),
    "kv_heads": Setting(
        "key and value heads that the query heads share (Ainslie et al. 2023); 0: as many as `heads`",
        Range(0, 1 << 16),
    ),
    "hidden": Setting(
        "hidden width of the feed-forward; 0: 4 x width, or 8/3 x for swiglu, rounded up to a multiple of 32",
        Range(0, 1 << 22),
    ),
    "head_dim": Setting("dimensions of each attention head; 0: width / heads", Range(0, 1 << 16)),
    "norm_epsilon": Setting(
        "number that is added to the variance in norms; 0: 1e-5 for layer norm, 1e-6 for RMSNorm",
        Range(1e-12, 0.1, zero=True),
    ),
    "bias": Setting("biases in the projections back into the stream, the feed-forward and layer norms"),
    "qkv_bias": Setting("biases in the projections of queries, keys and values"),
    "qk_norm": Setting("normalise each head's queries and keys (Henry et al. 2020)"),
    "tied": Setting("use the embedding as the output head (Press & Wolf 2017)"),
    "softcap": Setting(
        "limit logits z to +-softcap by c z / sqrt(c² + z²) (modded-nanogpt); 0: no limit",
        Range(0.01, 1e6, zero=True),
    ),
    "scalars": Setting(
        "the input of each block is r x + s x0, with learned r and s for the stream x and the embedding x0 "
        "(modded-nanogpt)"
    ),
    "bigrams": Setting(
        "rows of a table of bigram embeddings, indexed by a hash of a token and the previous one, which are added to "
        "the token embeddings (modded-nanogpt); 0: no table",
        _COUNT,
    ),
    "convolution": Setting(
        "width of a causal depthwise convolution over the embeddings and over the input of each attention and "
        "feed-forward layer (Allen-Zhu 2025, Canon layers); 0: none",
        Range(0, 1024),
        "tokens",
    ),
    "values": Setting("mix each block's values with those of the first block, with learned weights (Zhou et al. 2024)"),
    "gates": Setting("multiply each head's output by a gate computed from the stream (Qiu et al. 2025)"),
    "input_norm": Setting("normalise the embeddings (modded-nanogpt)"),
    "head_bias": Setting(
        "give the output head a bias, initialised to the log frequencies of the tokens in the training text"
    ),
    "zero_init": Setting(
        "initialise the projections back into the stream to zero, instead of normal(0, 0.02 / sqrt(2 layers))"
    ),
    "ngram": Setting(
        "length of the longest n-grams of the training text; they have a weight of 0.3 in the probabilities, but not "
        "during training (docs/training.md); 0: none",
        Range(0, 8),
        "tokens",
    ),
    "batch_size": Setting("sequences of a step", Range(1, _MAX_INT), "sequences"),
    "micro_batch": Setting(
        "sequences computed at once; 0: as many as fit into memory. A step is the same on every machine", _COUNT
    ),
    "steps": Setting("length of the training, unless `minutes` is set", Range(1, 99_999_999), "steps"),
    "minutes": Setting("length of the training by the clock; 0: by `steps`", Range(0.0, 1e7), "minutes"),
    "epochs": Setting("passes over the text after which the training ends at the latest; 0: no limit", Range(0.0, 1e7)),
    "optimizer": Setting(
        "AdamW for all weights, or Muon (Jordan 2024) for matrices and AdamW for the others", ("adamw", "muon")
    ),
    "learning_rate": Setting("peak learning rate of AdamW, or of Muon", _RATE),
    "embedding_rate": Setting("peak learning rate of embeddings, with muon", _RATE),
    "head_rate": Setting("peak learning rate of an untied head, with muon", _RATE),
    "vector_rate": Setting("peak learning rate of vectors, with muon", _RATE),
    "momentum": Setting("momentum of Muon, which rises to it from 0.85", _BELOW_ONE),
    "momentum_warmup": Setting("steps over which the momentum rises", _COUNT, "steps"),
    "weight_decay": Setting("weight decay of matrices; with adamw of embeddings and head too", _DECAY),
    "embedding_decay": Setting("weight decay of embeddings and head, with muon", _DECAY),
    "cautious": Setting("with muon, decay a weight only where the update shrinks it too (Chen et al. 2025)"),
    "beta1": Setting("decay of AdamW's mean of the gradients", _BELOW_ONE),
    "beta2": Setting("decay of AdamW's mean of their squares", _BELOW_ONE),
    "clip": Setting("norm to which larger gradients are scaled down; 1e9 clips none", Range(1e-6, 1e30)),
    "schedule": Setting(
        "decay to `final_share` from the peak on, or only over the last `cooldown` (Hägele et al. 2024)",
        ("cosine", "wsd"),
    ),
    "warmup": Setting("steps over which the learning rates rise to their peaks", _COUNT, "steps"),
    "cooldown": Setting("last fraction of the training, over which wsd decays the learning rates", _FRACTION),
    "final_share": Setting("learning rates at the end, as a fraction of their peaks", _FRACTION),
    "order": Setting("draw blocks with replacement, or visit each once per epoch", ("random", "epoch")),
    "document_starts": Setting("begin a block at the start of a document, if that is at most half a block before it"),
    "document_mask": Setting("hide earlier documents of the same row from attention"),
    "ema": Setting("decay of a moving average of the weights that is evaluated and sampled; 0: none", _BELOW_ONE),
    "precision": Setting("precision of matrix products; auto: the fastest", ("auto", "fp32", "bf16")),
    "compile": Setting(
        "compile the network with torch.compile; auto: on CUDA, where it saves time", ("auto", "yes", "no")
    ),
    "deterministic": Setting("on CUDA, repeat a training bit for bit, with slower kernels; a CPU always does"),
    "recompute": Setting("repeat the forward pass of each block in the backward pass: less memory, a third more time"),
    "parallel": Setting("how several processes share the work: DDP or FSDP", ("ddp", "fsdp")),
    "resident": Setting("keep all tokens on the device; auto: on CUDA if there is room", ("auto", "yes", "no")),
    "evaluations": Setting("evaluations on the validation text, the last one at the end", Range(1, _MAX_INT)),
    "eval_bytes": Setting(
        "first bytes of the validation text that are evaluated; 0: all of it", Range(0, (1 << 53) - 1), "bytes"
    ),
    "patience": Setting(
        "evaluations without improvement, with a loss 2 % above the best, after which the training returns to its best "
        "checkpoint and ends; 0: 2 if `minutes` is set, otherwise only a warning",
        _COUNT,
    ),
    "lora_rank": Setting(
        "rank of the low-rank factors that sft and dpo train in place of all weights (Hu et al. 2022), and that are "
        "merged at the end; 0: all weights",
        Range(0, 1 << 16),
    ),
    "beta": Setting(
        "for dpo, the strength of the penalty for a difference from the parent run (Rafailov et al. 2023)",
        Range(1e-4, 1e4, zero=True),
    ),
    "replay": Setting(
        "for sft, the fraction of the rows and of the loss that is training text of the base model; 0: none",
        Range(0.0, 0.9),
    ),
    "seed": Setting("seed of the initial weights, the batches and the dropout", _COUNT),
}
