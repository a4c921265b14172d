"""Token arrays: the tokenize stage and the store that it writes.

Start with `stage.py`; the work flows `tasks.py` to `worker.py` to `writer.py`. `store.py` opens a published array.
"""
