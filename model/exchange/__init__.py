"""Import and export of models in the formats of other programs.

Start with `architectures.py`, the table of names, then `convert.py`, which applies it to weights and configs. Export:
`export.py`, `export_source.py` (its input), one file per format (`huggingface.py`, `gguf.py`) and `model_card.py`.
Import: `import_model.py`.
"""
