"""A text of poems with blank lines between them becomes one document per poem; prose and stanzas do not."""

from __future__ import annotations

import pytest

from pipeline.clean.markup.poems import is_poems
from pipeline.clean.profiles import for_text
from tests.pipeline.clean.pages import clean_documents

POEM = "静夜思 李白\n床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n\n"
TEN = "".join(POEM.replace("静夜", number) for number in "一二三四五六七八九十")
SPEECH = "李逵\n哥哥往哪里去？\n我同你去。\n\n"
SENTENCE = "却说宋江在路上行了数日，见一座高山，山下有一酒店，店主人出来迎接，说道：客官请里面坐，有好酒好肉。"


@pytest.mark.parametrize(
    "text",
    [
        TEN + POEM,
        "\ufeff" + (TEN + POEM).replace("\n", "\r\n"),
        (TEN + POEM).replace("\n\n", "\n　\n\n"),
        (TEN + POEM).replace("床", "　　床").replace("举", "　　举"),
        TEN * 5 + "题\n" + POEM[:20],  # the last one is incomplete
        TEN * 5 + "以上五十首。\n\n" * 3,
        TEN + POEM * 80,  # ci have the names of their tunes
    ],
)
def test_titles_with_lines_of_verse_are_poems(text: str) -> None:
    assert is_poems(text)
    assert for_text("auto", text) == "poems"


@pytest.mark.parametrize(
    "text",
    [
        TEN[: -len(POEM)] + POEM,
        "",
        (SPEECH + SPEECH.replace("李逵", "宋江")) * 20,  # a play
        TEN + SPEECH * 200,
        POEM[POEM.index("\n") + 1 :] * 30,  # stanzas without titles
        "轻轻的我走了\n正如我轻轻的来\n\n" * 30,  # without marks
        f"{SENTENCE}\n\n" * 30,
        f"{SENTENCE}\n{SENTENCE}\n\n" * 30,
        f"第三回\n{SENTENCE}\n{SENTENCE}\n\n" * 30,  # lines longer than verse
        f"{SENTENCE[:30]}\n{SENTENCE[30:44]}\n{SENTENCE[44:]}\n\n" * 30,  # hard-wrapped
        "他问：\n“你好吗？”\n“好。”\n\n" * 30,
    ],
)
def test_other_text_with_blank_lines_is_not(text: str) -> None:
    assert not is_poems(text)


def test_each_poem_is_a_document_unless_a_unit_is_given() -> None:
    poem = "静夜思李白\n床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
    assert clean_documents(POEM * 3, profile="poems") == [("", poem)] * 3
    assert len(clean_documents(POEM * 3, profile="poems", unit="document")) == 1
    assert len(clean_documents(POEM * 3, profile="plain")) == 1
