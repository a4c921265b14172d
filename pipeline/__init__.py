"""From raw text to token arrays: the stages of Inkstone and the artifacts they publish.

Data flows one way: sources → raw → corpus → tokenizer → tokens. Each stage reads published artifacts and
publishes exactly one new one (`artifact.py`), or refuses and leaves everything as it was. Nothing in this
package imports torch, and nothing in it imports `model`.
"""
