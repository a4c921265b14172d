"""Reports: one self-contained HTML page about a corpus, tokens, a run, or the chain of a recipe.

Read `section.py` first: a page is a list of sections, and a section a list of blocks (paragraphs, figures, tables,
passages). `page.py` renders them with `templates/` and `style.css`, `charts.py` draws, `languages.py` chooses between
the English and the Chinese wording. `corpus.py` and `tokens.py` collect numbers, `corpus_sections.py` and
`tokens_sections.py` describe them, `chain.py` finds the artifacts of a report and `reports.py` writes the file.
"""
