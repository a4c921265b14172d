"""Export of tokens artifacts to the formats of other training tools.

Start with `export.py`: the table of formats and the export itself. `format.py` defines a format: its name, a function
that writes it, and one that reads it back by the format's own rules. Each format is one module: `nanogpt.py`,
`megatron.py`, `llmc.py`, `datatrove.py`, `hdf5_int32.py`, `litdata.py`. They share `arrays.py`, which reads and writes
ids. `verify.py` compares an export with the store. To add a format, write one such module and add it to the table.

An export is a plain folder, not an artifact: it appears complete or not at all, and then belongs to the other tool.
Its files are copies, never links: a tool that rewrites one does not change the store.
"""
