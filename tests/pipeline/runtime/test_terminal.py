"""Lines for terminals, pipes and logs: no control characters, escapes for what cannot be shown, code 74 if full."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from pathlib import Path

import pytest

import cli
from model.commands.recipe_samples import sample_lines
from pipeline.errors import StorageFailed
from pipeline.runtime import terminal
from pipeline.runtime.progress import BarProgress, JsonLogProgress, LineProgress, Progress
from pipeline.runtime.terminal import json_line, printable, printable_block, table

HOSTILE = "a\x1b[2J\x9b2J\u202eb\r\nc\u2028\x7f\udcca"
ESCAPED = r"a\x1b[2J\x9b2J\u202eb\r\nc\u2028\x7f\udcca"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")


def test_controls_line_breaks_and_reading_order_are_escaped() -> None:
    assert printable(HOSTILE) == ESCAPED
    assert printable_block("一\t二\n三\x1b\r") == "一\t二\n三\\x1b\\r"


@pytest.mark.parametrize("text", ["话说，天明。", "𠮷\u3000□\ue10e", "👩\u200d👩", "e\u0301 ñ → ␣\ttab", "\\n stays"])
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == printable_block(text) == text


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "ascii", "cp1252"])
def test_json_has_the_same_values_in_every_encoding(encoding: str) -> None:
    fields = {"error": f"{HOSTILE}话𠮷", "rows": [{"\x9b": 1}]}
    line = json_line(fields, encoding=encoding)
    assert json.loads(line.encode(encoding).decode(encoding)) == fields
    assert not RAW.search(line)
    assert "\n" not in line


class Stream(io.StringIO):
    """Standard output of an encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


@pytest.mark.parametrize(
    ("encoding", "line", "bar"), [("utf-8", "█▄▁▁", "▏"), ("gbk", "█▄▁▁", "▏"), ("ascii", "#:__", "#")]
)
def test_small_charts_have_characters_that_the_terminal_can_show(
    encoding: str, line: str, bar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Stream(encoding))
    assert terminal.sparkline([5.0, 4.1, 3.4, 3.4]) == line
    assert terminal.bars([0, 1, 100_000]) == ["", bar, (bar if encoding == "ascii" else "█") * terminal.BAR]
    assert (terminal.sparkline([]), terminal.bars([])) == ("", [])


def test_columns_of_a_table_are_aligned_with_wide_characters() -> None:
    rows = [("name", "size", "content"), ("砚e\u0301", "10 kB", "a"), ("raw/a", "1 kB", "")]
    assert table(rows, right=(1,)) == ["name    size  content", "砚e\u0301    10 kB  a", "raw/a   1 kB"]


def test_sparkline_of_many_values_has_the_first_and_the_last() -> None:
    line = terminal.sparkline([9.0, *[5.0] * 1000, 1.0])
    assert len(line) == terminal.SPARKS
    assert (line[0], line[-1]) == (terminal.sparkline([9.0, 1.0])[0], terminal.sparkline([9.0, 1.0])[1])


@pytest.mark.parametrize(
    "arguments", [["clean", HOSTILE], [f"--{HOSTILE}"], [HOSTILE], ["clean", "--min-chars", HOSTILE]]
)
@pytest.mark.parametrize("flag", [(), ("--debug",), ("--json",)])
def test_errors_show_no_control_characters(
    arguments: list[str], flag: tuple[str, ...], root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--artifacts", str(root), *arguments, *flag]) in (2, 66)
    out, err = capfd.readouterr()
    assert not RAW.search(out + err)
    assert r"\x1b[2J" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")


def test_debug_prints_no_secrets(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "SECRET\\token\n1")
    url = "http://me:SECRETPW@[::1/a.txt?sig=SECRETSIG"
    assert cli.main(["--artifacts", str(root), "--debug", "download", url]) == 78
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert "SECRET" not in err


@pytest.mark.parametrize("report", [LineProgress().note, JsonLogProgress(LineProgress(), Path("/dev/null"), "1").note])
def test_notes_are_one_line(report: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(report)
    report(HOSTILE)
    assert capsys.readouterr().err == f"{ESCAPED}\n"


def test_logged_notes_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pipeline"):
        Progress().note(HOSTILE)
    assert caplog.messages == [ESCAPED]


def test_log_file_has_no_control_characters(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    JsonLogProgress(LineProgress(), log, "1").event("exit", error=HOSTILE)
    line = log.read_text(encoding="utf-8")
    assert json.loads(line)["error"] == HOSTILE
    assert not RAW.search(line)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 bytes"), (1, "1 byte"), (87, "87 bytes"), (42_400, "42 kB"), (999_700, "1.0 MB")]
)
def test_small_sizes_are_not_rounded_to_nothing(count: int, shown: str) -> None:
    assert terminal.data_size(count) == shown


def test_rate_of_a_small_input_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for count in (29, 3_000_000):
        with LineProgress().bar("clean", None) as advance:
            advance(count)
    small, large = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"clean: 29 bytes in \d+\.\d s", small)
    assert re.fullmatch(r"clean: 3\.0 MB in \d+\.\d s \([\d,.]+ MB/s\)", large)


def test_bar_takes_a_title_with_markup_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    with BarProgress().bar("a[/b]\x1bc.txt", 10) as advance:
        advance(10)
    assert r"a[/b]\x1bc.txt" in capsys.readouterr().err


def test_samples_are_lines() -> None:
    assert sample_lines([{"prompt": "一", "text": "二\n三"}, {"prompt": "四", "text": ""}]) == [
        "  一|二",
        "    三",
        "  四|",
    ]


@pytest.mark.parametrize("encoding", ["gbk", "ascii", "latin-1"])
def test_output_that_cannot_show_a_character_gets_an_escape(
    encoding: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "𠮷.txt"
    text.write_text("话说天下大势。\n", encoding="utf-8")
    out = tmp_path / "out"
    with out.open("w", encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main(["--artifacts", str(root), "clean", str(text), "--name", "book"]) == 0
    assert "\\U00020bb7.txt" in out.read_text(encoding=encoding)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [["status"], ["status", "--json"], ["presets", "--help"], ["verify", "x", "--json"]]
)
def test_full_output_is_a_storage_error(
    arguments: list[str], root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["--artifacts", str(root), *arguments]) == (66 if "verify" in arguments else 74)
    err = capfd.readouterr().err  # leaving `with` would raise if the text were still to be written
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_output_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(StorageFailed, match="standard output: no space left on device"):
        terminal.write("x")
    monkeypatch.setattr(sys, "stdout", None)
    terminal.write("x")


def test_log_that_is_a_pipe_without_a_reader_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "log")
    JsonLogProgress(LineProgress(), tmp_path / "log", "1").note("a note")
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {tmp_path / 'log'}: No such device or address; continuing without a log",
        "a note",
    ]


@pytest.mark.parametrize(
    ("count", "plural", "expected"),
    [
        (0, "files", "0 files"),
        (1, "files", "1 file"),
        (2000, "files", "2,000 files"),
        (1, "stretches", "1 stretch"),
        (1, "processes", "1 process"),
        (1, "train tokens", "1 train token"),
        (1, "vocab size", "1 vocab size"),
        (1.0, "minutes", "1 minute"),
        (0.5, "minutes", "0.5 minutes"),
    ],
)
def test_count_has_its_noun_in_the_right_number(count: float, plural: str, expected: str) -> None:
    assert terminal.counted(count, plural) == expected
