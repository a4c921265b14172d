"""Download raw files, verify them, and resolve the inputs of stages.

Start with `download.py`, the stage. It takes a source from `catalogue.py`, fetches each file with `transfer.py` (over
`http.py` and `redirects.py`, resuming from `partial.py`) and pins it in the raw cache, `cache.py`. `hub.py` lists the
files of a dataset on the Hugging Face hub, `dataset.py` chooses among them. `small.py` fetches what fits into memory.
`inputs.py` resolves the files that later stages read; `decompress.py` is a stage of its own.
"""
