"""Code that an export of the family `fast` carries with it, for transformers; nothing here imports the rest."""
