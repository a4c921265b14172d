"""Start: look at the text that a user names, and write the recipe that trains a model on it.

`survey.py` looks at the inputs, `decide.py` turns what it saw into a recipe with a reason for each choice, and
`recipe_file.py` writes the recipe, or adds more text to one. The recipe is then run by `refresh`.
"""
