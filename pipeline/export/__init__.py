"""Tokens artifacts in the formats of other tools: what was tokenized here can be trained on there.

`formats.py` is the table and the way in. `interface.py` says what a format is: a name, a function that writes and
one that reads back by the format's own rules. Each format is one module: `nanogpt.py`, `megatron.py`, `llmc.py`,
`datatrove.py`, `hdf5_int32.py`, `litdata.py`; `stream.py` holds what they all do with ids and files. A seventh
format is one more such module and one more line in the table.

An export is a plain folder, not an artifact: it appears whole or not at all, and is the other tool's from then on.
Where a format's bytes are those of a published segment, its file is a hard link to it and costs nothing.
"""
