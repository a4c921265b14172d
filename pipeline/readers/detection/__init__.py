"""Detection of the encoding of a text file from its bytes."""
