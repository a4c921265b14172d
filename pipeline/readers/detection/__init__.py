"""Detection of the encoding and the script of a text."""
