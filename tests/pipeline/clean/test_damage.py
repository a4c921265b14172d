"""Damaged texts: bad bytes, GBK read from the wrong byte, debris. Each is counted, and the rest of the text kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean import stage
from pipeline.clean.damage import shifted_gbk
from pipeline.clean.options import CleanOptions
from pipeline.clean.rule import Counts
from pipeline.clean.utf16 import decode_utf16, encode_utf16
from pipeline.readers import compression
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import resolve_inputs
from tests.pipeline.clean.pages import clean_documents, normalise

BOOK = (Path(__file__).parents[3] / "pipeline" / "sample" / "yanshan.txt").read_text(encoding="utf-8-sig")
PROSE = "".join(BOOK.split())
GOOD = "话说那老人坐在船头，望着江上的烟雨，半晌没有言语。"


def run(text: str) -> tuple[str, Counts]:
    counts: Counts = Counter()
    return decode_utf16(shifted_gbk.RULE.apply(encode_utf16(text), counts)), counts


def shift(text: str) -> str:
    """Return a text as a reader shows it that lost the first byte."""
    return normalise(text.encode("gb18030")[1:].decode("gb18030", "replace"))


def build(root: Path, path: Path, **options: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the texts and the report of a corpus."""
    inputs = resolve_inputs(root, str(path), corpora=False)
    built = stage.clean(root, path.stem, inputs, CleanOptions(**options), SilentProgress()).artifact
    data = b"".join(compression.read_blocks(built.file("documents.jsonl.zst")))
    return [json.loads(line)["text"] for line in data.splitlines()], json.loads(built.file("report.json").read_bytes())


@pytest.mark.parametrize("start", [0, 400, 800, 1600, 2000, 2400])
def test_passage_that_was_shifted_becomes_one_lacuna(start: int) -> None:
    passage = shift(PROSE[start : start + 60])
    cleaned, counts = run(f"{GOOD}{passage}\n{GOOD}")
    before, after = cleaned.split("□")
    assert before[: len(GOOD) - 2] == GOOD[:-2]  # a character at each end may be taken for its neighbour
    assert after.endswith(f"\n{GOOD}")
    assert len(before) + len(after) < 2 * len(GOOD) + 16
    assert counts["passages → □"] == 1
    assert counts["characters of passages"] == len(GOOD + passage + GOOD) + 2 - len(cleaned)


def test_passage_goes_to_the_lost_character_at_the_end_of_its_line() -> None:
    text = "玄德称善，遂命云长守住江口，翼德引兵巡视四乡。当夜月明星稀，遂令军士护送老弱先行，自与赵云断后。"
    passage = shift(text)
    assert passage.endswith("贫虾蟆\ufffd")  # common characters from either byte
    assert run(f"{GOOD}\n{passage}\n{GOOD}")[0] == f"{GOOD}\n□\n{GOOD}"


def test_question_marks_of_a_shifted_passage_end_no_sentence() -> None:
    passage = "".join("?" if "\ue000" <= character <= "\uf8ff" else character for character in shift(PROSE[:120]))
    assert "?" in passage
    [(_, text)] = clean_documents(f"{GOOD}{passage}\n{GOOD}")
    assert text.count("□") == 1
    assert "？" not in text


@pytest.mark.parametrize(
    "text",
    [
        PROSE[:3000],
        "嵯峨嶙峋，崔嵬嶕峣；葳蕤蓊郁，潺湲澎湃。饕餮梼杌，魑魅魍魉，鳏寡茕独，蹀躞踟蹰。" * 3,
        "□之□，□□而□。A君与B君、C君，甲A乙B丙C。",
        "见表2，x轴3格，y轴4格？何也？",
        "秦川雄帝宅，函谷壯皇居。綺殿千尋起，離宮百雉餘。連甍遙接漢，飛觀迥凌虛。" * 3,
        "林□0&KR0869;，又&KR0001;&KR0002;",
        "私は学生です。吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 3,
        "Я иду домой。他说：Да, я знаю。一二三ＡＢＣ，１２３４，①②③④⑤。" * 3,
        "𠮷野家\ue000\ue001\ue002的\ue003家",
    ],
)
def test_good_text_is_not_taken_for_a_shifted_passage(text: str) -> None:
    assert run(text) == (text, Counter())


@settings(max_examples=60)
@given(st.integers(0, 3000), st.integers(10, 120), st.sampled_from("\n\0𠮷"))
def test_rule_is_idempotent_and_counts_what_it_removes(start: int, size: int, separator: str) -> None:
    text = f"{GOOD}{shift(PROSE[start : start + size])}{separator}{PROSE[start : start + size]}{GOOD}"
    once, counts = run(text)
    assert run(once) == (once, Counter())
    assert len(text) - len(once) == counts["characters of passages"] - counts["passages → □"]
    assert len(once.split(separator)) == len(text.split(separator))


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_bad_byte_becomes_a_lacuna_and_is_reported_by_file(tmp_path: Path, encoding: str) -> None:
    good, bad = tmp_path / "in" / "good.txt", tmp_path / "in" / "bad.txt"
    good.parent.mkdir()
    good.write_text(GOOD, encoding="utf-8")
    bad.write_bytes((GOOD * 40).encode(encoding) + b"\xff" + GOOD.encode(encoding))
    texts, report = build(tmp_path, good.parent)
    assert texts == [GOOD * 40 + "□" + GOOD, GOOD]
    assert [file.get("invalid_bytes") for file in report["files"]] == [1, None]
    offset = len((GOOD * 40).encode(encoding))
    assert report["warnings"] == [
        f"INVALID BYTES: 1 in 1 of 2 files (bad.txt), each now □; the first at offset {offset:,} of bad.txt"
    ]


def test_shifted_passage_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes((GOOD * 9).encode("gb18030") + PROSE[:101].encode("gb18030")[1:] + b"\n" + GOOD.encode("gb18030"))
    texts, report = build(tmp_path, path)
    assert texts[0].startswith(GOOD * 9 + "□")
    assert texts[0].endswith(f"\n{GOOD}")
    assert any(warning.startswith("GBK READ FROM THE WRONG BYTE: ") for warning in report["warnings"])
    assert any("in 1 passages" in warning for warning in report["warnings"])
    texts, report = build(tmp_path, path, without=("shifted",))
    assert not any("WRONG BYTE" in warning for warning in report["warnings"])
