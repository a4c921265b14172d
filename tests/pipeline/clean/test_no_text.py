"""The error for a cleaning that leaves no document names the reasons and an option that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.clean import stage
from pipeline.clean.options import CleanOptions
from pipeline.errors import BadData
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import resolve_inputs


@pytest.mark.parametrize(
    ("text", "options", "message", "remedy"),
    [
        ("It rained.\n", {"profile": "plain"}, "(1 no-han), since --profile plain was given", {"profile": "auto"}),
        ("It rained.\n", {"min_han": 0.5}, "(1 no-han), since --min-han 0.5 was given", {"min_han": 0.0}),
        ("他 rained\n", {"profile": "plain"}, "(1 few-han), since --profile plain was given", {"profile": "auto"}),
        ("It rained.\n", {"min_chars": 99}, "(1 too-short), since --min-chars 99 was given", {"min_chars": 1}),
        ("《》……\n", {}, "(1 no-han): no letters", {"profile": "text"}),
        ("□□，山河□□。\n", {}, "(1 lacunae): too many of the characters are □", {"profile": "text"}),
        ("林□冲走了一回\n", {"lacunae": "drop-unit"}, "(1 lacunae), since --lacunae drop-unit", {"lacunae": "keep"}),
        ("能ㄋ嗽ホホ然笑挽\n", {}, "(1 mojibake): the text looks wrongly decoded", {"profile": "text"}),
        ("第一回\n", {}, "(1 empty): nothing but headings", {"headings": "keep"}),
        ("第一回\n第二回\n", {}, "there are no documents: nothing but headings", {"headings": "keep"}),
    ],
)
def test_error_names_the_reason_and_an_option_that_works(
    root: Path, tmp_path: Path, text: str, options: dict[str, Any], message: str, remedy: dict[str, Any]
) -> None:
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    inputs = resolve_inputs(root, str(path), corpora=False)
    with pytest.raises(BadData) as caught:
        stage.clean(root, "book", inputs, CleanOptions(**options), SilentProgress())
    assert caught.value.exit_code == 65
    assert message in caught.value.message
    assert caught.value.message.startswith("book.txt: no text is left: ")
    ((name, value),) = remedy.items()
    assert f"--{name.replace('_', '-')} {value}".removesuffix(".0") in caught.value.hint
    with pytest.raises(BadData, match="no text is left"):
        stage.build_report(inputs, CleanOptions(**options), SilentProgress())
    assert stage.clean(root, "book", inputs, CleanOptions(**options | remedy), SilentProgress()).result == "built"


def test_error_lists_all_reasons_the_most_frequent_first(root: Path, tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.jsonl").write_text('{"text":"one"}\n{"text":""}\n{"text":"two"}\n', encoding="utf-8")
    inputs = [file for name in "abcd" for file in resolve_inputs(root, str(tmp_path / f"{name}.jsonl"), corpora=False)]
    with pytest.raises(BadData) as caught:
        stage.clean(root, "book", inputs, CleanOptions(profile="plain"), SilentProgress())
    assert caught.value.message == (
        "a.jsonl, b.jsonl, c.jsonl and 1 more: no text is left: all 12 documents were dropped (8 no-han, 4 empty), "
        "since --profile plain was given"
    )
