"""The survey of inputs: sizes, scripts, prompts, and what is decided from them."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from pipeline.errors import InkstoneError
from pipeline.start import decide, recipe_file
from pipeline.start.survey import InputSummary, Survey, prompts, script_shares, survey

ENGLISH = "The old man wrote what he saw of the river in that morning.\n\n" * 400
CHINESE = "　　却说阿渊携砚来到江边，见一老渔翁坐在船头饮酒。\n" * 400


def look_at(tmp_path: Path, **texts: str) -> Survey:
    inputs = []
    for name, text in texts.items():
        path = tmp_path / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        inputs.append((path.name, [path]))
    return survey(inputs)


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("The river", {"Latin": 1.0}),
        ("山水 ab", {"Chinese": 0.5, "Latin": 0.5}),
        ("Привет", {"Cyrillic": 1.0}),
        ("123 !", {}),
        ("", {}),
    ],
)
def test_scripts_are_counted_by_letters(text: str, scripts: dict[str, float]) -> None:
    assert script_shares(text) == scripts


def test_survey_counts_what_was_named(tmp_path: Path) -> None:
    text = look_at(tmp_path, a=ENGLISH, b=CHINESE)
    assert [entry.characters for entry in text.inputs] == [len(ENGLISH), len(CHINESE)]
    assert text.documents == 2
    assert text.is_english
    assert 0.2 < text.chinese < 0.5


def test_large_input_is_estimated_from_its_beginning(tmp_path: Path) -> None:
    text = look_at(tmp_path, a=ENGLISH * 400)
    assert text.inputs[0].characters == pytest.approx(400 * len(ENGLISH), rel=0.2)
    assert len(text.sample) < 8 << 20
    assert text.documents == 1


def test_plan_names_fields_that_are_not_read(tmp_path: Path) -> None:
    rows = [f"t{number},却说阿渊携砚来到江边做什么？,见一老渔翁饮酒。" for number in range(9)]
    (tmp_path / "qa.csv").write_text("\n".join(["标题,问题,回答", *rows]), encoding="utf-8")
    [(_, content), *_] = decide.describe(survey([("qa.csv", [tmp_path / "qa.csv"])]), 1000)
    assert "text from field 问题; not read: 回答; --text-field 问题,回答 joins them" in content


def test_plan_says_how_to_tune_on_conversations(tmp_path: Path) -> None:
    (tmp_path / "qa.json").write_text('[{"instruction": "Where?", "output": "By the river, in a boat."}]')
    [(_, content), *_] = decide.describe(survey([("qa.json", [tmp_path / "qa.json"])]), 1000)
    assert "these are conversations: `start` with --from RUN tunes a run on them" in content
    assert "--profile" not in content


def test_prompts_are_beginnings_of_paragraphs() -> None:
    assert prompts("The old man wrote.\n\nShe was not there.\n\nBut he went on.") == (
        "The old man",
        "She was not",
        "But he went",
    )
    assert prompts("却说阿渊来到江边。\n老渔翁笑道。\n天色已晚。") == ("却说阿渊", "老渔翁笑", "天色已晚")
    assert prompts("12 34") == ("12",)
    assert prompts("") == ()


def test_reasons_follow_the_text(tmp_path: Path) -> None:
    english = dict(decide.describe(look_at(tmp_path, a=ENGLISH), 1000))
    assert english["cleaning"].startswith("line ends and control characters only")
    assert english["held out"] == "5 %, chosen by hash: stretches of the text, or whole chapters if there are many"
    chinese = dict(decide.describe(look_at(tmp_path, a=CHINESE), 1000))
    assert chinese["cleaning"] == "the rules for Chinese text"


def test_tokens_are_estimated_from_the_pieces_that_a_text_has(tmp_path: Path) -> None:
    """Recurring dates and names are few tokens each, though the letters are Chinese."""
    dice = random.Random(1)
    talk = ("".join(chr(0x4E00 + dice.randrange(400)) for _ in range(10)) for _ in range(1500))
    chat = "".join(
        f"于 2023-05-{n % 28 + 1:02} {n % 24:02}:30:10 阿花(12345)\n{line}\n\n" for n, line in enumerate(talk)
    )
    text = look_at(tmp_path, a=chat)
    assert 1500 * 13 < decide.count_tokens(text) < 0.5 * len(chat)
    untrainable = Survey([InputSummary("a", characters=340)], {}, is_english=False, sample="")
    assert decide.count_tokens(untrainable) == 95


def test_sources_are_relative_below_the_recipe_and_absolute_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    inside, outside = tmp_path / "here" / "a.txt", tmp_path / "b.txt"
    inside.touch()
    outside.touch()
    assert recipe_file.as_source(str(inside), tmp_path / "here") == "a.txt"
    assert recipe_file.as_source(str(outside), tmp_path / "here") == str(outside.resolve())
    assert recipe_file.as_source("hf:ann/letters", tmp_path) == "hf:ann/letters"


def test_recipe_with_byte_order_mark_and_windows_line_ends_is_extended(tmp_path: Path) -> None:
    path = tmp_path / "book.toml"
    recipe_file.write(path, {"download": {"source": ["a.txt"]}, "train": {"minutes": 1.0}})
    written = path.read_bytes().replace(b"\n", b"\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + written)
    recipe_file.extend(path, ["b.txt"], 2.0)
    extended = path.read_bytes()
    assert extended.startswith(written.partition(b"source")[0])
    assert recipe_file.load(path).download.sources == (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    assert recipe_file.load(path).train.minutes == 2.0


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, 73), (errno.EACCES, 77)])
def test_folder_that_is_not_writable_is_named_by_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def refuse(target: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), ".tmp.novel.1")

    monkeypatch.setattr("pipeline.store.files.write_file", refuse)
    with pytest.raises(InkstoneError, match=r"novel\.toml: the recipe is written into the current folder") as caught:
        recipe_file.write(tmp_path / "novel.toml", {"download": {"source": "novel.txt"}})
    assert caught.value.exit_code == code
    assert "change to a writable folder" in caught.value.hint


def test_kinds_of_files_are_named_once(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c", "d.md")]
    for number, path in enumerate(paths):
        path.write_text(f"# {number}\n\n{ENGLISH}", encoding="utf-8")
    assert "4 files (text and Markdown)" in dict(decide.describe(survey([("notes", paths)]), 1000))["text"]
