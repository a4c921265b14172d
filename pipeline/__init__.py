"""Text data pipeline: the stages from raw text to token arrays, and the artifacts they publish.

Data flows one way: sources → raw files → corpus → tokenizer → tokens. Each stage reads published artifacts and
publishes exactly one new one, or fails and leaves the store unchanged. Open `store/artifact.py` first, then the stages
in that order: `sources/download.py`, `clean/stage.py`, `tokenizers/stage.py`, `tokens/stage.py`. Nothing in this
package imports torch or `model`.
"""
