"""Published folders: durable files, locks, manifests, generations and artifacts.

Start with `artifact.py`: it builds, publishes and finds artifacts.
"""
