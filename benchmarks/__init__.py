"""Side-by-side measurements: two ways to do one thing, in turn, on the same machine. Figures go to README.md here."""
