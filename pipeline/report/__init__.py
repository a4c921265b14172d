"""Reports: one self-contained HTML page about a corpus, tokens, a run, or the chain of a recipe.

Read `section.py` first: a page is a list of sections, and a section a list of blocks (paragraphs, figures, tables,
passages). `page.py` renders them with `templates/` and `style.css`, `charts.py` draws, `languages.py` chooses between
the English and the Chinese wording. `corpus.py`, `tokens.py` and `run.py` collect numbers, `corpus_sections.py`,
`tokens_sections.py` and `run_sections.py` describe them, `runs.py` compares several runs. `chain.py` finds the
artifacts of a report, and `reports.py` writes the file.
"""
