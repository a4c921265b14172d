"""Chat logs lose their times and keep names and messages; other texts with times are no chat logs."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.clean.markup.chat_log import chat_log, is_chat_log
from pipeline.clean.markup.detect import detect
from pipeline.clean.profiles import for_text
from pipeline.clean.rule import Counts
from pipeline.start.survey import survey

WHATSAPP = (
    "1/15/23, 2:01 PM - Messages are encrypted.\n"
    "1/15/23, 2:01\u202fPM - Ann Lee: See you at 10:30\n"
    "1/15/23, 2:02 PM - +44 7911 123456: <Media omitted>\n"
    "12/1/23, 12:02 AM - Ann Lee: two\n\nlines\n"
)
APPLE = "\u200e[15/01/2023, 14:01:22] Ann: one: two\n[15.01.23, 14:01:23] Bob: \u200eimage omitted\n"
QQ = (
    "消息记录\n\n2023-05-01 9:20:30 小明(12345)\n你好，在吗？\n\n"
    "2023-05-01 10:20:31 阿珍<a@b.cn>\n[图片]\n\n2023/5/1 下午3:20 阿珍\n在\n\n"
)
DISCORD = "[5/1/2023 10:20 AM] ann#1234\nhello there\n\n[01-May-23 10:21 AM] bob\nhi\n\n"


@pytest.mark.parametrize(
    ("log", "text", "counts"),
    [
        (
            WHATSAPP,
            "Messages are encrypted.\nAnn Lee: See you at 10:30\nAnn Lee: two\n\nlines\n",
            {"time": 4, "media": 1},
        ),
        (APPLE, "Ann: one: two\n", {"time": 2, "media": 1}),
        (QQ, "消息记录\n小明：你好，在吗？\n阿珍：在\n", {"time": 3, "media": 1, "account": 2}),
        (DISCORD, "ann#1234: hello there\nbob: hi\n", {"time": 2}),
        ("no time\n", "no time\n", {}),
    ],
)
def test_times_accounts_and_marks_of_media_go(log: str, text: str, counts: dict[str, int]) -> None:
    removed: Counts = Counter()
    assert chat_log(log, removed).text == text
    assert removed == counts


@pytest.mark.parametrize(
    "message",
    ["2023-05-01 10:20 a: <" + "omitted" * 20_000, "2023-05-01 10:20 <" + "a@" * 60_000 + "\nhi"],
    ids=["media", "account"],
)
def test_long_lines_take_linear_time(message: str) -> None:
    start = time.process_time()
    assert len(chat_log(message, Counter()).text) > 100_000
    assert time.process_time() - start < 1


@pytest.mark.parametrize("log", [WHATSAPP, APPLE, QQ, DISCORD])
def test_chat_log_is_detected(log: str) -> None:
    assert not is_chat_log(log), "too short"
    assert is_chat_log(log * 8)
    assert detect(log.replace("\n", "\r\n") * 8) == "chat-log"


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"2023-05-01 10:20:{n:02} opened the file of number {n} of all these\n" for n in range(60)),
        "".join(f"2023-05-{n:02}\n今天下雨，没有出门。\n" for n in range(1, 30)),
        "".join(f"2023-05-{n:02} 10:20\n今天下雨，没有出门。\n" for n in range(1, 30)),
        "".join(f"2023-05-01 10:20 小明{n}\n" for n in range(20)),
        QQ * 8 + "他走了。\n" * 500,
        "".join(f"2023-05-{n:02} 22:10 {'晴阴'[n % 2]}\n今天没有出门，在家看书。\n\n" for n in range(1, 30)),
        "".join(f"会议{n}\n2023-05-{n:02} 10:20 来源：新华网\n今天开会。\n\n" for n in range(1, 30)),
        "".join(f"2023-05-01 10:20:{n:02} INFO: opened file {n}\n" for n in range(60)),
        "".join(f"2023/05/01 10:20:{n:02} [error] 12#0: no file {n}\n" for n in range(60)),
    ],
)
def test_logs_of_programs_diaries_and_news_are_no_chat_logs(text: str) -> None:
    assert not is_chat_log(text)


def test_language_decides_about_the_rules_for_a_chat_log() -> None:
    assert for_text("auto", QQ * 8) == "chat-log"
    assert for_text("auto", WHATSAPP * 8) == "chat-log-text"
    assert for_text("text", WHATSAPP * 8) == "text"


def test_survey_samples_a_chat_log_without_its_times(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(WHATSAPP * 8, encoding="utf-8", newline="\r\n")
    result = survey([("a", [tmp_path / "a.txt"])])
    assert result.inputs[0].notes == ["chat log, without its times"]
    assert "Ann Lee: two" in result.sample
    assert "1/15/23" not in result.sample
