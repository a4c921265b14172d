"""Names are nouns of the field, and docstrings do not begin with a question word."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for folder in ("pipeline", "model", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
FILES.append(ROOT / "cli.py")

# Words that do not describe a value; a local name should be the field's noun for its value.
FUNCTION_WORDS = frozenset(
    [
        "found",
        "each",
        "made",
        "told",
        "chosen",
        "kept",
        "there",
        "what",
        "whole",
        "left",
        "own",
        "place",
        "places",
        "came",
        "said",
        "asked",
        "shown",
        "given",
        "taken",
        "known",
        "these",
        "those",
        "other",
        "others",
        "now",
        "then",
        "when",
        "where",
        "who",
        "how",
        "why",
        "rest",
        "back",
        "here",
        "less",
        "more",
        "most",
        "few",
        "many",
        "much",
        "some",
        "any",
        "all",
        "both",
        "same",
        "such",
        "that",
        "this",
        "it",
        "them",
        "they",
        "again",
        "done",
        "gone",
        "seen",
        "wanted",
        "wants",
        "needed",
        "begun",
        "ended",
        "got",
        "about",
        "around",
        "below",
        "above",
        "beside",
    ]
)
MOST_FUNCTION_WORDS = 0.01  # of all assigned names
QUESTION_WORDS = ("What", "How", "Where", "Whether", "Who", "Why", "Which")

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def assigned_names(tree: ast.AST) -> list[str]:
    return [
        node.id.strip("_") for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]


def question_docstrings(tree: ast.AST) -> list[str]:
    """First lines of the docstrings that begin with a question word."""
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    return [text.splitlines()[0] for text in docstrings if text and text.split()[0].strip(",:") in QUESTION_WORDS]


def function_word_fraction(trees: list[ast.AST]) -> tuple[float, Counter[str]]:
    names = [name for tree in trees for name in assigned_names(tree)]
    counts = Counter(name for name in names if name in FUNCTION_WORDS)
    return counts.total() / max(len(names), 1), counts


def parsed() -> list[ast.AST]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]


def test_assigned_names_say_what_they_hold() -> None:
    fraction, counts = function_word_fraction(parsed())
    assert fraction <= MOST_FUNCTION_WORDS, counts.most_common(12)


def test_no_docstring_begins_with_a_question_word() -> None:
    assert not [line for tree in parsed() for line in question_docstrings(tree)]


def test_a_planted_function_word_and_question_are_seen() -> None:
    tree = ast.parse(
        'def read(path):\n    """What is in the file."""\n    found = path.read_text()\n    return found\n'
    )
    assert function_word_fraction([tree]) == (1.0, Counter(found=1))
    assert question_docstrings(tree) == ["What is in the file."]
