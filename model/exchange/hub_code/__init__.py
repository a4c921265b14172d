"""Code for transformers, which an export of the family `fast` contains. It imports nothing else of Inkstone."""
