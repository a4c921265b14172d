"""Nodes of a cluster. Before a node does a task of another machine, `check.py` compares versions and files."""
