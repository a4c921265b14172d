"""Import and export of models in the formats of other programs.

Start with `architectures.py`, the table of names, then `convert.py`, which applies it to weights and configs. Export:
`export.py`, `export_source.py` (its input), one file per format (`huggingface.py`, `gguf.py`) and `model_card.py`.
Import: `import_model.py`, with `nanogpt.py` and `nanogpt_vocabulary.py` (its checkpoints and its meta.pkl) and
`import_tokenizer.py` (the proof that a tokenizer is the network's, by `probe_texts.py` among others). `weight_files.py`
says which tensors are accepted.
"""
