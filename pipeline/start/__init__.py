"""Start: survey the text that a user names, and write the recipe that trains a model on it.

`survey.py` measures the inputs, `decide.py` chooses the recipe and gives the reason for each choice, and
`recipe_file.py` writes the recipe, or adds more text to one. `refresh` then runs the recipe. `conversations.py` is for
the tuning of a run. `history.py` derives the recipe of what was built.
"""
