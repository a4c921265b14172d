"""Token arrays: the tokenize stage and the store it writes.

Start with `stage.py`. Work flows from `tasks.py` (read files into tasks) to `worker.py` (encode one task) to
`writer.py` (collect the results in order). `store.py` opens a published array; `locate.py` looks into one.
"""
