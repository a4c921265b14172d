"""The JSON of chinese-poetry: every shape is read completely, and other JSON is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BadData
from pipeline.readers import readers
from pipeline.readers.documents import Document
from pipeline.runtime.ledger import Ledger


def read(folder: Path, value: Any, *, head: bytes = b"") -> list[Document]:
    path = folder / "a.json"
    path.write_bytes(head + json.dumps(value, ensure_ascii=False).encode())
    return list(readers.read_documents(path, Ledger(), print))


def summaries(documents: list[Document]) -> list[tuple[str, str, Any]]:
    return [(document.title, document.text, document.meta) for document in documents]


@pytest.mark.parametrize("name", ["paragraphs", "content", "para"])
def test_text_field_has_any_of_three_names(tmp_path: Path, name: str) -> None:
    assert summaries(
        read(tmp_path, [{"title": "静夜思", "author": "李白", name: ["床前明月光，", "疑是地上霜。"]}])
    ) == [("静夜思", "床前明月光，\n疑是地上霜。", {"author": "李白"})]


@pytest.mark.parametrize("name", ["title", "rhythmic", "chapter", "section"])
def test_title_field_has_any_of_four_names(tmp_path: Path, name: str) -> None:
    assert summaries(read(tmp_path, [{name: "导引", "paragraphs": ["气和玉烛。"]}])) == [("导引", "气和玉烛。", None)]


def test_first_title_field_is_the_title_and_others_are_meta(tmp_path: Path) -> None:
    song = {"title": "关雎", "chapter": "国风", "section": "周南", "content": ["关关雎鸠"]}
    assert summaries(read(tmp_path, [song])) == [("关雎", "关关雎鸠", {"chapter": "国风", "section": "周南"})]


def test_text_may_be_a_string(tmp_path: Path) -> None:
    assert summaries(
        read(tmp_path, [{"content": "读经宜冬，其神专也。", "comment": ["曹秋岳曰：可想见。", "庞笔奴曰：善。"]}])
    ) == [("", "读经宜冬，其神专也。", {"comment": "曹秋岳曰：可想见。\n庞笔奴曰：善。"})]


def test_one_object_is_a_file_of_one_poem(tmp_path: Path) -> None:
    assert summaries(
        read(tmp_path, {"title": "千字文", "author": "周兴嗣", "paragraphs": ["天地玄黄", "宇宙洪荒"]})
    ) == [("千字文", "天地玄黄\n宇宙洪荒", {"author": "周兴嗣"})]


def test_book_of_volumes_yields_a_document_per_text(tmp_path: Path) -> None:
    book = {
        "title": "古文观止",
        "author": "吴楚材",
        "abstract": ["清人选本。", "凡十二卷。"],
        "content": [
            {
                "title": "卷一",
                "content": [
                    {
                        "chapter": "郑伯克段於鄢",
                        "author": "左丘明 ",
                        "source": "《左传》",
                        "paragraphs": ["初，", "郑武公。"],
                    },
                    {"chapter": "周郑交质", "paragraphs": ["郑武公、庄公。"]},
                ],
            },
            {"title": "卷二", "paragraphs": ["晋侯。"]},
        ],
    }
    documents = read(tmp_path, book)
    assert summaries(documents) == [
        ("郑伯克段於鄢", "初，\n郑武公。", {"author": "左丘明", "source": "《左传》", "book": "古文观止 卷一"}),
        ("周郑交质", "郑武公、庄公。", {"author": "吴楚材", "book": "古文观止 卷一"}),
        ("卷二", "晋侯。", {"author": "吴楚材", "book": "古文观止"}),
    ]
    assert [(document.file, document.line, document.offset) for document in documents] == [
        ("a.json", n, 0) for n in (1, 2, 3)
    ]


def test_parts_of_a_poem_get_its_title(tmp_path: Path) -> None:
    poem = {
        "chapter": "携妓纳凉",
        "subchapter": None,
        "author": "杜甫",
        "paragraphs": [
            {"subchapter": "其一", "paragraphs": ["落日放船好。"]},
            {"subchapter": "其二", "paragraphs": ["雨来沾席上。"]},
        ],
    }
    assert summaries(read(tmp_path, {"title": "千家诗", "content": [{"type": "五言律诗", "content": [poem]}]})) == [
        ("携妓纳凉 其一", "落日放船好。", {"author": "杜甫", "book": "千家诗 五言律诗 携妓纳凉"}),
        ("携妓纳凉 其二", "雨来沾席上。", {"author": "杜甫", "book": "千家诗 五言律诗 携妓纳凉"}),
    ]


def test_text_of_a_book_outside_its_chapters_is_a_document_too(tmp_path: Path) -> None:
    book = {"title": "弟子规", "content": ["弟子规，圣人训。", {"chapter": "入则孝", "paragraphs": ["父母呼。"]}]}
    assert [(document.title, document.text) for document in read(tmp_path, book)] == [
        ("弟子规", "弟子规，圣人训。"),
        ("入则孝", "父母呼。"),
    ]


def test_text_fields_of_a_poem_become_meta(tmp_path: Path) -> None:
    poem = {
        "paragraphs": ["秦川雄帝宅。"],
        "title": "帝京篇",
        "author": "太宗皇帝",
        "biography": "帝姓李氏。",
        "prologue": "予以万几之暇。",
        "notes": ["一作。", ""],
        "id": "08e41396",
        "no": 7,
        "tags": ["唐"],
        "dynasty": "",
    }
    assert read(tmp_path, [poem])[0].meta == {
        "author": "太宗皇帝",
        "biography": "帝姓李氏。",
        "prologue": "予以万几之暇。",
        "notes": "一作。",
        "id": "08e41396",
    }


@pytest.mark.parametrize("empty", [{"paragraphs": []}, {"content": None}, {"title": "失题"}, {"paragraphs": [[]]}])
def test_entry_without_text_is_an_empty_document(tmp_path: Path, empty: Any) -> None:
    documents = read(tmp_path, [{"paragraphs": ["一"]}, empty, {"paragraphs": ["三"]}])
    assert [(document.text, document.line) for document in documents] == [("一", 1), ("", 2), ("三", 3)]


def test_empty_list_has_no_documents_and_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert read(tmp_path, []) == []
    assert [document.text for document in read(tmp_path, [{"para": ["一"]}], head=b"\xef\xbb\xbf")] == ["一"]


@pytest.mark.parametrize(
    "value", [{}, 7, [{"name": "李白", "desc": "字太白", "id": "1"}], [{"paragraphs": 7}], [{"paragraphs": [7]}]]
)
def test_json_without_text_raises_bad_data_with_a_hint(tmp_path: Path, value: Any) -> None:
    with pytest.raises(BadData, match="no field text") as caught:
        read(tmp_path, value)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("depth", [500, 5_000, 100_000])
def test_deeply_nested_entries_never_crash(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"content":[' * depth + '"水"' + "]}" * depth)
    try:
        assert [document.text for document in readers.read_documents(path, Ledger(), print)] == ["水"]
    except BadData:
        assert depth > 100


TEXTS = st.text(alphabet="水浒林冲，。𤣥", min_size=1, max_size=4)
ENTRIES = st.recursive(
    TEXTS, lambda inner: st.fixed_dictionaries({"content": st.lists(inner, min_size=1, max_size=3)}), max_leaves=12
)


@given(st.lists(st.fixed_dictionaries({"paragraphs": st.lists(ENTRIES, max_size=3)}), max_size=4))
def test_every_paragraph_is_in_exactly_one_document(
    tmp_path_factory: pytest.TempPathFactory, entries: list[dict[str, Any]]
) -> None:
    written = sorted(re.findall('"([水浒林冲，。𤣥]+)"', json.dumps(entries, ensure_ascii=False)))
    documents = read(tmp_path_factory.mktemp("poems"), entries)
    assert sorted(line for document in documents if document.text for line in document.text.split("\n")) == written
    assert [document.line for document in documents] == list(range(1, len(documents) + 1))


def test_real_files_are_read_with_title_and_author(shared: Path) -> None:
    counts = {}
    for path in sorted((shared / "data" / "chinese-poetry").glob("*.json")):
        entries = json.loads(path.read_text())
        documents = list(readers.read_documents(path, Ledger(), print))
        counts[path.name] = len(documents)
        assert [document.text for document in documents] == ["\n".join(entry["paragraphs"]) for entry in entries]
        for entry, document in zip(entries, documents, strict=True):
            assert document.title == (entry.get("title") or entry.get("rhythmic") or entry.get("chapter")).strip()
            assert (document.meta or {}).get("author", "") == entry.get("author", "").strip()
    assert counts == {"ci.song.0.json": 1000, "lunyu.json": 20, "poet.song.0.json": 1000}
