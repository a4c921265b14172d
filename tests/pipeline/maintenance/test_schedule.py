"""The printed schedules: what cron and systemd make of them is the command that was meant, and it runs."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadConfig, InputMissing
from pipeline.maintenance import schedule
from pipeline.maintenance.schedule import Job
from pipeline.store import artifact

ROOT = Path(__file__).resolve().parents[3]
ODD = 'it\'s 100% %h 中文 "raw"'  # what shells, cron and systemd each give a meaning of their own
LESS_ODD = "100% %h 中文 raw"  # as odd as systemd lets the path of a program be

RECIPE = """
name = "book"
[download]
source = {source}
[clean]
unit = "paragraph"
[tokenizer]
kind = "char"
vocab_size = 0
[tokenize]
val_fraction = 0.3
[train]
preset = "sample"
steps = 1
"""


def write_recipe(folder: Path, name: str = "book") -> Path:
    """A recipe in `folder` for a small text beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    book = folder / "book.txt"
    paragraphs = [f"第{number}段。话说天下大势，分久必合，合久必分。\n\n" for number in range(30)]
    book.write_text("".join(paragraphs), encoding="utf-8")
    path = folder / "book.toml"
    quoted = '"' + str(book).replace("\\", "\\\\").replace('"', '\\"') + '"'
    text = RECIPE.format(source=quoted).replace('name = "book"', f'name = "{name}"')
    path.write_text(text, encoding="utf-8")
    return path


def make_job(folder: Path, *, name: str = "book", **options: Any) -> Job:
    return Job(
        **{
            "recipe": write_recipe(folder, name),
            "root": folder / "artifacts",
            "python": Path(sys.executable),
            "program": ROOT / "cli.py",
            **options,
        }
    )


@pytest.fixture
def odd_job(tmp_path: Path) -> Job:
    """A job every path of which has an odd name: this project and this Python seen through links."""
    folder = tmp_path / ODD
    folder.mkdir()
    (folder / "程序").symlink_to(ROOT)
    (tmp_path / LESS_ODD).symlink_to(sys.prefix)
    python = tmp_path / LESS_ODD / Path(sys.executable).relative_to(sys.prefix)
    return make_job(folder, python=python, program=folder / "程序" / "cli.py", through="tokenize")


def parse_crontab(text: str) -> tuple[dict[str, str], list[tuple[list[str], str]]]:
    """The variables of a crontab, and its entries as (five fields, command), as Vixie's cron reads them."""
    variables, entries = {}, []
    assert text.endswith("\n"), "cron refuses a last line without an end"
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if match := re.match(r"\s*(\w+)\s*=\s*(.*?)\s*$", line):
            name, value = match.groups()
            if value[:1] in ("'", '"'):
                assert value[-1] == value[0]
                assert value[0] not in value[1:-1]
                value = value[1:-1]
            variables[name] = value
        else:
            *fields, command = line.split(None, 5)
            entries.append((fields, until_percent(command)))
    return variables, entries


def until_percent(command: str) -> str:
    r"""What cron hands to the shell: all up to a bare `%`; `\%` becomes `%`, and `\\` a backslash, as in Debian."""
    out, escaped = "", False
    for character in command:
        if escaped:
            out = out[:-1] + character if character in "%\\" else out + character
            escaped = False
        elif character == "%":
            break
        else:
            out, escaped = out + character, character == "\\"
    return out


def shell_words(command: str) -> list[str]:
    """The words that a real shell makes of the last part of `command`."""
    last = command.rpartition(" && ")[2]
    script = f"for word in {last}; do printf '%s\\0' \"$word\"; done"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def test_the_crontab_says_when_and_runs_one_command(tmp_path: Path) -> None:
    variables, entries = parse_crontab(schedule.cron(make_job(tmp_path, at="22:05"), {}))
    assert variables == {"SHELL": "/bin/sh", "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    [(fields, _)] = entries
    assert fields == ["5", "22", "*", "*", "*"]


@pytest.mark.parametrize("name", [ODD, "back\\slash\\\\s", "percent\\%", "$HOME `id` ; & 'x", " end ", "#~*?"])
def test_the_command_comes_through_cron_and_the_shell_with_every_path_as_it_is(tmp_path: Path, name: str) -> None:
    job = make_job(tmp_path / name, through="clean", ping_url="https://hc.example/ping/a%20b?x=1&y=2")
    [(_, command)] = parse_crontab(schedule.cron(job, {}))[1]
    words = shell_words(command)
    assert words[words.index(sys.executable) :] == job.command()
    log = str(job.root / ".state" / "book.log.jsonl")
    assert job.command()[1:] == [
        *(str(ROOT / "cli.py"), "--artifacts", str(job.root), "-q", "--log-json", log),
        *("refresh", str(job.recipe), "--through", "clean", "--ping-url", job.ping_url),
    ]


def test_the_command_yields_to_other_work_and_is_told_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("nice", "timeout"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    job = make_job(tmp_path)

    def kindly() -> list[str]:
        words = parse_crontab(schedule.cron(job, {}))[1][0][1].rpartition(" && ")[2].split()
        return words[: words.index(sys.executable)]

    limit = [str(tools / "timeout"), "--foreground", "--signal=TERM", "--kill-after=30m", "20h"]
    assert kindly() == [str(tools / "nice"), "-n", "19", *limit]
    shutil.copy(tools / "nice", tools / "ionice")
    assert kindly() == [str(tools / "nice"), "-n", "19", str(tools / "ionice"), "-c3", "-t", *limit]


def test_the_command_of_the_crontab_runs_with_nothing_but_its_variables(odd_job: Job) -> None:
    variables, [(_, command)] = parse_crontab(schedule.cron(odd_job, {}))
    done = subprocess.run(
        ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in variables.items()), "/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        start_new_session=True,  # no terminal
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    made = artifact.find(odd_job.root, "tokens", "book")
    assert made.manifest.counts["train_tokens"] > 0
    assert not artifact.problems(made, deep=True)
    assert (odd_job.root / ".state" / "book.log.jsonl").stat().st_size > 0
    assert not (odd_job.root / "runs").exists(), "--through was lost"


def test_a_command_that_cron_would_cut_off_is_refused(tmp_path: Path) -> None:
    long = make_job(tmp_path, root=tmp_path / "deep" / ("长" * 80) / ("文" * 80))
    with pytest.raises(BadConfig, match="cron reads 998"):
        schedule.cron(long, {})
    assert str(long.root) in schedule.systemd(long, {})


def test_where_data_comes_from_is_carried_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    now = {
        "HF_ENDPOINT": "https://mirror.example/100%",
        "https_proxy": "http://proxy.example:3128",
        "NO_PROXY": "localhost, 10.0.0.0/8",
        "TIKTOKEN_CACHE_DIR": "rank files",
        "EDITOR": "vi",
    }
    variables, _ = parse_crontab(schedule.cron(make_job(tmp_path), now))
    meant = {**now, "TIKTOKEN_CACHE_DIR": str(tmp_path / "rank files")}
    del meant["EDITOR"]
    assert {name: variables.get(name) for name in meant} == meant
    assert "EDITOR" not in variables
    service, _ = units(schedule.systemd(make_job(tmp_path), now))
    written = [unquoted(value) for value in service["Service"]["Environment"].splitlines()]
    assert [f"{name}={value}" for name, value in meant.items()] == [each for [each] in written[1:]]


@pytest.mark.parametrize("write", [schedule.cron, schedule.systemd])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "hf_hunter2"),
        ("HTTPS_PROXY", "http://me:hunter2@proxy.example:3128"),
        ("http_proxy", "me:hunter2@proxy.example:3128"),
        ("HF_ENDPOINT", "https://mirror.example/?key=hunter2"),
        ("HF_ENDPOINT", "https://me:hunter2@mirror.example"),
    ],
)
def test_no_secret_is_ever_written(tmp_path: Path, write: Any, name: str, value: str) -> None:
    text = write(make_job(tmp_path), {name: value})
    assert "hunter2" not in text
    [told] = [line for line in text.splitlines() if f"{name}=" in line]
    assert told.startswith("#")


def test_the_environment_of_this_process_is_the_one_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert "\nHF_ENDPOINT=https://mirror.example\n" in schedule.cron(make_job(tmp_path))


@pytest.mark.parametrize("at", ["", "24:00", "3:30", "03:60", "03:30:00", "３:30", "03:30\n"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, at: str) -> None:
    with pytest.raises(BadConfig, match="no time of day"):
        make_job(tmp_path, at=at)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"through": "tokenise"}, "no stage"),
        ({"ping_url": "hc.example/ping"}, "not an address"),
        ({"ping_url": "https:///ping"}, "not an address"),
        ({"ping_url": "https://hc.example/a b"}, "holds a password or a blank"),
        ({"ping_url": "https://me:hunter2@hc.example/"}, "holds a password or a blank"),
        ({"ping_url": "me:hunter2@hc.example"}, "holds a password or a blank"),
        ({"root": Path("/data/new\nline")}, "cannot be written"),
        ({"root": Path(os.fsdecode(b"/data/\xff"))}, "cannot be written"),
    ],
)
def test_what_could_not_run_is_refused_when_it_is_printed(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig, match=said) as caught:
        make_job(tmp_path, **options)
    assert "hunter2" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_refused_when_it_is_printed(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such recipe"):
        make_job(tmp_path, recipe=tmp_path / "none.toml")


def test_paths_become_absolute_and_links_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("python").symlink_to(sys.executable)
    job = make_job(tmp_path, root=Path("artifacts"), python=Path("python"))
    assert (job.root, job.python) == (tmp_path / "artifacts", tmp_path / "python")


def units(text: str) -> Iterator[configparser.ConfigParser]:
    """The unit files in a text, parsed; a key that comes several times has its values in lines."""
    for part in re.split(r"^# file: .*\n", text, flags=re.MULTILINE)[1:]:
        parsed = configparser.ConfigParser(interpolation=None, strict=False, delimiters="=", comment_prefixes="#")
        parsed.optionxform = str  # type: ignore[assignment,method-assign]
        seen: dict[str, list[str]] = {}
        section = ""
        for line in part.splitlines():
            section = line if line.startswith("[") else section
            if "=" in line and not line.startswith("#"):
                seen.setdefault(f"{section}{line.partition('=')[0]}", []).append(line.partition("=")[2])
        parsed.read_string(part)
        for section in parsed.sections():
            for key in parsed[section]:
                parsed[section][key] = "\n".join(seen[f"[{section}]{key}"])
        yield parsed


def unquoted(value: str) -> list[str]:
    """The items of a list in a unit file, by the rules of systemd.syntax(7) that are used here."""
    items = re.findall(r'"((?:[^"\\]|\\.)*)"', value)
    assert " ".join(f'"{item}"' for item in items) == value
    return [re.sub(r"\\(.)", r"\1", item).replace("%%", "%") for item in items]


def file_names(text: str) -> list[str]:
    return re.findall(r"^# file: (.*)$", text, flags=re.MULTILINE)


def test_the_service_runs_the_same_command_kindly_and_may_write_to_the_artifacts_only(odd_job: Job) -> None:
    service, timer = units(schedule.systemd(odd_job, {"TIKTOKEN_CACHE_DIR": "/ranks"}))
    found = dict(service["Service"])
    [program, *rest] = unquoted(found.pop("ExecStart"))
    assert [program.removeprefix(":"), *rest] == odd_job.command()
    assert found.pop("WorkingDirectory").replace("%%", "%") == f"{odd_job.program.parent}/"
    assert unquoted(found.pop("ReadWritePaths")) == [str(odd_job.root), "-/ranks"]
    assert found == {
        "Type": "oneshot",
        "Environment": '"LANG=C.UTF-8"\n"TIKTOKEN_CACHE_DIR=/ranks"',
        "SuccessExitStatus": "75",
        "TimeoutStartSec": "20h",
        "TimeoutStopSec": "30min",
        "KillMode": "mixed",
        "Nice": "19",
        "IOSchedulingClass": "idle",
        "MemoryMax": "80%",
        "NoNewPrivileges": "yes",
        "PrivateUsers": "yes",
        "PrivateTmp": "no" if str(odd_job.root).startswith("/tmp/") else "yes",
        "ProtectSystem": "strict",
    }
    assert dict(timer["Timer"]) == {
        "OnCalendar": "*-*-* 03:30:00",
        "Persistent": "true",
        "RandomizedDelaySec": "15min",
    }
    assert timer["Install"]["WantedBy"] == "timers.target"


@pytest.mark.parametrize(("root", "own"), [("/data/artifacts", "yes"), ("/var/tmp/artifacts", "no")])
def test_a_service_whose_files_lie_in_tmp_has_none_of_its_own(tmp_path: Path, root: str, own: str) -> None:
    recipe = ROOT / "pipeline" / "recipes" / "sample.toml"
    job = make_job(tmp_path, recipe=recipe, root=Path(root), python=Path("/usr/bin/python3"), program=Path("/x/cli.py"))
    service, _ = units(schedule.systemd(job, {}))
    assert service["Service"]["PrivateTmp"] == own if not str(recipe).startswith("/tmp/") else "no"


@pytest.mark.parametrize("name", ["it's", 'a "b"', "a\\b"])
def test_a_python_that_systemd_would_not_start_is_refused(tmp_path: Path, name: str) -> None:
    job = make_job(tmp_path, python=tmp_path / name / "python")
    with pytest.raises(BadConfig, match="systemd starts no program"):
        schedule.systemd(job, {})
    assert schedule.cron(job, {})


def test_units_are_named_after_the_recipe_and_two_recipes_never_share_one(tmp_path: Path) -> None:
    folder = "~/.config/systemd/user"
    plain = schedule.systemd(make_job(tmp_path), {})
    assert file_names(plain) == [f"{folder}/inkstone-book.service", f"{folder}/inkstone-book.timer"]
    assert "systemctl --user enable --now inkstone-book.timer\n" in plain
    named = [file_names(schedule.systemd(make_job(tmp_path, name=name), {})) for name in ("水浒", "红楼", "c+", "c-")]
    assert len({each for names in named for each in names}) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9._/~-]+", each) for names in named for each in names)


def save_units(text: str, folder: Path) -> list[Path]:
    """Do what the comments say: the files, under their names."""
    names = [Path(name).name for name in file_names(text)]
    for name, part in zip(names, re.split(r"^# file: .*\n", text, flags=re.MULTILINE)[1:], strict=True):
        (folder / name).write_text(part, encoding="utf-8")
    return [folder / name for name in names]


def test_systemd_finds_nothing_to_say_against_the_units(odd_job: Job, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze") or pytest.skip("no systemd-analyze here")
    paths = save_units(schedule.systemd(odd_job, {}), tmp_path)
    done = subprocess.run([analyze, "verify", *map(str, paths)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "inkstone" in line]
    assert (done.returncode, ours) == (0, [])
    paths[0].write_text(paths[0].read_text(encoding="utf-8").replace("%%", "%"), encoding="utf-8")
    done = subprocess.run([analyze, "verify", *map(str, paths)], capture_output=True, text=True, check=False)
    assert "inkstone-book.service" in done.stderr, "a broken unit passes too: the check checks nothing"


def test_systemd_itself_reads_every_path_as_it_is(odd_job: Job) -> None:
    manager = Path("/lib/systemd/systemd")
    if not manager.exists() or not shutil.which("setpriv"):
        pytest.skip("no systemd here that could read units without being started")
    with tempfile.TemporaryDirectory() as name:  # not below tmp_path, which only its owner may enter
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "run").mkdir()
        service, _ = save_units(schedule.systemd(odd_job, {"TIKTOKEN_CACHE_DIR": '/a b%"c\\d'}), folder)
        (folder / "default.target").write_text(f"[Unit]\nWants={service.name}\n")
        variables = {"HOME": name, "XDG_RUNTIME_DIR": f"{name}/run", "SYSTEMD_UNIT_PATH": f"{name}:"}
        nobody = ["setpriv", "--reuid=65534", "--clear-groups"] if os.getuid() == 0 else []
        if nobody:
            os.chown(folder / "run", 65534, -1)
        command = [*nobody, str(manager), "--test", "--user"]
        done = subprocess.run(
            command, env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True, check=False
        )
    if "Unit inkstone-book.service" not in done.stdout:
        pytest.skip(f"systemd would not read units here: {done.stderr[-200:]}")
    told = done.stdout.partition("-> Unit inkstone-book.service")[2].partition("\t-> Unit ")[0]
    assert f'ReadWritePaths: {odd_job.root} -/a b%"c\\d\n' in told
    assert 'Environment: TIKTOKEN_CACHE_DIR=/a b%"c\\d\n' in told
    assert f"WorkingDirectory: {odd_job.program.parent}\n" in told
    escaped = [word.replace('"', '\\"') for word in odd_job.command()]
    shown = [f'"{word}"' if re.search(r"[\s\"']", word) else word for word in escaped]
    assert f"Command Line: {' '.join(shown)}\n" in told
