"""Token arrays: the tokenize stage and the store it writes.

Start with `stage.py`. Work flows from `tasks.py` (read files into tasks) to `worker.py` (encode one task) to
`writer.py` (collect the results in order). `split.py` divides text between training and validation, by a rule that
`survey.py` chooses; `overlap.py` counts the documents that are in both. `store.py` opens a published array; `locate.py`
finds the source of one of its tokens.
"""
