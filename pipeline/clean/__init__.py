"""Cleaning: raw files become a corpus of documents and sentences, and every removed character is counted.

Start with `stage.py`, which publishes the corpus. The stage has four steps: `tasks.py` (read files into tasks),
`worker.py` (a pure function of a task), `parts/` (collect results in order, part by part), `stage.py` (identity,
publish).

A worker passes a page of documents through `cleaner.py`, which applies the rules in `rules/`. `rule.py` defines a rule
and explains how to add one; `utf16.py` is the array of UTF-16 units that rules work on. Then `filters.py` rejects
non-text, `duplicates/` finds duplicates, and `sentences.py` and `lines.py` make the lines of sentences.txt.
`options.py` and `profiles.py` choose the rules, `markup/` parses marked-up sources, `report/` counts what changed.
"""
