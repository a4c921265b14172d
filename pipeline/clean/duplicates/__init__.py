"""Documents that repeat others: equal or similar ones in the corpus, and those that share text with held-out documents.

Start with `near.py`: which documents of a corpus are duplicates. `fingerprints.py` has what is compared for equality,
`signatures.py` what is compared for similarity. `../parts/candidates.py` stores the documents until they are compared.
`held_out.py` compares documents with a validation or test corpus.
"""
