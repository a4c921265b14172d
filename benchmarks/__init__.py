"""Side-by-side benchmarks: Inkstone and other tools do the same work alternately on one machine.

Read command.py (the `bench` command) and rows.py (one comparison) first. The figures are in README.md, the experiments
that did not pay off in NOTES.md.
"""
