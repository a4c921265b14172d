"""Lines that `refresh` and `start` print."""

from __future__ import annotations

from model.commands.recipe_samples import sample_lines


def test_continuations_are_shown_without_their_blank_lines() -> None:
    samples = [{"prompt": "a", "text": " b\n\n \n  c\n"}, {"prompt": "d", "text": "\n"}]
    assert sample_lines(samples) == ["  a| b", "      c", "  d|"]
