"""Natural order of file names."""

from __future__ import annotations

import random
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.order import natural_key


@pytest.mark.parametrize(
    "names",
    [
        ["第1回.txt", "第2回.txt", "第10回.txt", "第100回.txt"],
        ["第九回.txt", "第十回.txt", "第十一回.txt", "第二十回.txt", "第一百零八回.txt"],
        ["卷一", "卷二", "卷十二"],
        ["红楼梦上.txt", "红楼梦中.txt", "红楼梦下.txt"],
        ["a.txt", "a2.txt", "a10.txt", "ab.txt"],
        ["ci.song.0.json", "ci.song.1000.json", "ci.song.2019y.json", "ci.song.10000.json"],
        ["a.txt", "B.TXT", "c.Txt"],
        ["a/2.txt", "a/10.txt", "a10/1.txt", "b.txt"],
        ["x01.txt", "x1.txt", "x2.txt"],
        ["sample.jsonl.zst", "yanshan.txt"],
    ],
)
def test_names_are_in_natural_order(names: list[str]) -> None:
    shuffled = list(names)
    random.Random(1).shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == names


@given(st.lists(st.text(st.sampled_from("aA1０9十百上./é\u0301\udcff²"), min_size=1), unique_by=PurePath))
def test_order_does_not_depend_on_the_order_of_the_input(names: list[str]) -> None:
    shuffled = random.Random(1).sample(names, len(names))
    assert sorted(shuffled, key=natural_key) == sorted(names, key=natural_key)
