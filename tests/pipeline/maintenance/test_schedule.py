"""Printed schedules: cron and systemd parse them to the intended command, and it runs."""

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

import cli
from pipeline.errors import BadConfig, InputMissing
from pipeline.maintenance import schedule
from pipeline.maintenance.schedule import ScheduledRefresh
from pipeline.store import artifact
from tests.support.bad_server import running_server

ROOT = Path(__file__).resolve().parents[3]
ODD = 'it\'s 100% %h 中文 "raw"'  # special characters of shells, cron and systemd
LESS_ODD = "100% %h 中文 raw"  # all special characters that systemd allows in the path of a program

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
    """Write a recipe and a small text to `folder` and return the path of the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    book = folder / "book.txt"
    paragraphs = [f"第{number}段。话说天下大势，分久必合，合久必分。\n\n" for number in range(30)]
    book.write_text("".join(paragraphs), encoding="utf-8")
    path = folder / "book.toml"
    quoted = '"' + str(book).replace("\\", "\\\\").replace('"', '\\"') + '"'
    text = RECIPE.format(source=quoted).replace('name = "book"', f'name = "{name}"')
    path.write_text(text, encoding="utf-8")
    return path


def make_job(folder: Path, *, name: str = "book", **options: Any) -> ScheduledRefresh:
    return ScheduledRefresh(
        **{
            "recipe": write_recipe(folder, name),
            "root": folder / "artifacts",
            "python": Path(sys.executable),
            "program": ROOT / "cli.py",
            "at": "03:30",
            **options,
        }
    )


@pytest.fixture
def odd_job(tmp_path: Path) -> ScheduledRefresh:
    """Return a job whose paths all contain special characters, through links to this project and this Python."""
    folder = tmp_path / ODD
    folder.mkdir()
    (folder / "程序").symlink_to(ROOT)
    (tmp_path / LESS_ODD).symlink_to(sys.prefix)
    python = tmp_path / LESS_ODD / Path(sys.executable).relative_to(sys.prefix)
    return make_job(folder, python=python, program=folder / "程序" / "cli.py", through="tokenize")


def parse_crontab(text: str) -> tuple[dict[str, str], list[tuple[list[str], str]]]:
    """Parse a crontab as Vixie cron does. Returns its variables and its entries as (five fields, command)."""
    variables, entries = {}, []
    assert text.endswith("\n"), "cron rejects a last line without a newline"
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
    r"""Return the command that cron (Debian) passes to the shell: up to a bare `%`; `\%` is `%`, `\\` a backslash."""
    result, escaped = "", False
    for character in command:
        if escaped:
            result = result[:-1] + character if character in "%\\" else result + character
            escaped = False
        elif character == "%":
            break
        else:
            result, escaped = result + character, character == "\\"
    return result


def shell_words(command: str) -> list[str]:
    """Return the words that a real shell parses from the last part of `command`."""
    last = command.rpartition(" && ")[2]
    script = f"for word in {last}; do printf '%s\\0' \"$word\"; done"
    process = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True)
    return [os.fsdecode(word) for word in process.stdout.split(b"\0")[:-1]]


def test_crontab_has_time_and_one_command(tmp_path: Path) -> None:
    variables, entries = parse_crontab(schedule.cron(make_job(tmp_path, at="22:05"), {}))
    assert variables == {"SHELL": "/bin/sh", "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    [(fields, _)] = entries
    assert fields == ["5", "22", "*", "*", "*"]


@pytest.mark.parametrize("name", [ODD, "back\\slash\\\\s", "percent\\%", "$HOME `id` ; & 'x", " end ", "#~*?"])
def test_command_survives_cron_and_shell_quoting(tmp_path: Path, name: str) -> None:
    job = make_job(tmp_path / name, through="clean", ping_url="https://hc.example/ping/a%20b?x=1&y=2")
    [(_, command)] = parse_crontab(schedule.cron(job, {}))[1]
    words = shell_words(command)
    assert words[words.index(sys.executable) :] == job.command()
    log = str(job.root / ".state" / "book.log.jsonl")
    assert job.command()[1:] == [
        *(str(ROOT / "cli.py"), "--artifacts", str(job.root), "-q", "--log-json", log),
        *("refresh", str(job.recipe), "--through", "clean", "--ping-url", job.ping_url),
    ]


def test_command_has_low_priority_and_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("nice", "timeout"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    job = make_job(tmp_path)

    def prefix() -> list[str]:
        words = parse_crontab(schedule.cron(job, {}))[1][0][1].rpartition(" && ")[2].split()
        return words[: words.index(sys.executable)]

    limit = [str(tools / "timeout"), "--foreground", "--signal=TERM", "--kill-after=30m", "20h"]
    assert prefix() == [str(tools / "nice"), "-n", "19", *limit]
    shutil.copy(tools / "nice", tools / "ionice")
    assert prefix() == [str(tools / "nice"), "-n", "19", str(tools / "ionice"), "-c3", "-t", *limit]


def test_crontab_command_runs_with_its_variables_only(odd_job: ScheduledRefresh) -> None:
    variables, [(_, command)] = parse_crontab(schedule.cron(odd_job, {}))
    process = subprocess.run(
        ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in variables.items()), "/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        start_new_session=True,  # no terminal
        timeout=120,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    tokens = artifact.find(odd_job.root, "tokens", "book")
    assert tokens.manifest.counts["train_tokens"] > 0
    assert not artifact.find_problems(tokens, deep=True)
    assert (odd_job.root / ".state" / "book.log.jsonl").stat().st_size > 0
    assert not (odd_job.root / "runs").exists(), "--through is missing"


def recipes_of_every_kind(folder: Path) -> list[Path]:
    """Write four recipes and their texts: relative paths, tables with a text field, a table of variants, a URL."""
    (folder / "texts").mkdir(parents=True)
    paragraphs = "".join(f"第{number}段。爲人話說天下大勢。\n\n" for number in range(30))
    (folder / "texts" / "novel.txt").write_text(paragraphs, encoding="utf-8")
    rows = "".join(f"{number},{line}\n" for number, line in enumerate(paragraphs.split("\n\n")) if line)
    (folder / "posts.csv").write_text(f"id,body\n{rows}", encoding="utf-8")
    (folder / "variants.txt").write_text("爲 → 為\n", encoding="utf-8")
    recipes = {
        "relative": '[download]\nsource = "texts"',
        "table": '[download]\nsource = ["posts.csv"]\n[clean]\ntext_fields = ["body"]',
        "own text": '[download]\nsource = "./texts/novel.txt"\n[clean]\nvariants = "variants.txt"\nunit = "paragraph"',
        "proxy": '[download]\nsource = "http://texts.example/book.txt"',
    }
    paths = [folder / f"{name}.toml" for name in recipes]
    for path, text in zip(paths, recipes.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def test_four_recipes_run_with_the_variables_of_their_crontab_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server() as proxy:
        proxy.files["http://texts.example/book.txt"] = "话说天下大势，分久必合。\n".encode() * 50
        monkeypatch.chdir(tmp_path)
        recipes = [path.relative_to(tmp_path) for path in recipes_of_every_kind(tmp_path / "here")]
        jobs = [make_job(tmp_path / "job", recipe=recipe, root=Path("store"), through="clean") for recipe in recipes]
        crontabs = [parse_crontab(schedule.cron(job, {"ALL_PROXY": proxy.url})) for job in jobs]
        monkeypatch.chdir("/")
        for variables, [(_, command)] in crontabs:
            for name in os.environ.keys() - {"HOME", "OMP_WAIT_POLICY"}:
                monkeypatch.delenv(name)
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            words = shell_words(command)
            assert cli.main(words[words.index(str(ROOT / "cli.py")) + 1 :]) == 0
        assert proxy.requested_paths
    names = ("relative", "table", "own-text", "proxy")
    corpora = [artifact.find(tmp_path / "store", "corpora", name) for name in names]
    assert all(corpus.manifest.counts["documents"] for corpus in corpora)


def test_recipes_spread_over_the_hour_by_name_and_store(tmp_path: Path) -> None:
    def times(root: Path) -> list[str]:
        jobs = [make_job(tmp_path / str(number), name=f"book{number}", root=root, at=None) for number in range(12)]
        return [job.time for job in jobs]

    assert all(re.fullmatch(r"03:[0-5][0-9]", time) for time in times(tmp_path))
    assert len({*times(tmp_path)}) > 6
    assert times(tmp_path) == times(tmp_path)
    assert times(tmp_path) != times(tmp_path / "other")


@pytest.mark.parametrize("kind", ["cron", "systemd"])
def test_check_runs_the_command_dry_in_an_empty_environment(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path / ODD, through="clean")
    monkeypatch.setenv("INKSTONE_ARTIFACTS", "/nowhere")
    if kind == "systemd":
        (job.recipe.parent / "book.txt").unlink()
    process = schedule.check(job, kind, {"HF_ENDPOINT": "https://mirror.example"})
    if kind == "cron":
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.splitlines()[-1].startswith("needs ")
    else:
        assert process.returncode == 66
        assert process.stderr.startswith(f"error: {job.recipe.parent / 'book.txt'}: neither a path nor a source")
    assert not (job.root / "raw").exists()


def test_line_too_long_for_cron_raises_bad_config(tmp_path: Path) -> None:
    long = make_job(tmp_path, root=tmp_path / "deep" / ("长" * 80) / ("文" * 80))
    with pytest.raises(BadConfig, match="cron reads at most 998"):
        schedule.cron(long, {})
    assert str(long.root) in schedule.systemd(long, {})


def test_variables_for_data_sources_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {
        "HF_ENDPOINT": "https://mirror.example/100%",
        "ALL_PROXY": "socks5://proxy.example:1080",
        "all_proxy": "socks5://proxy.example:1080",
        "https_proxy": "http://proxy.example:3128",
        "NO_PROXY": "localhost, 10.0.0.0/8",
        "TIKTOKEN_CACHE_DIR": "rank files",
        "XDG_CACHE_HOME": "/var/cache",
        "REQUESTS_CA_BUNDLE": "certificates/@ours.pem",
        "EDITOR": "vi",
    }
    variables, _ = parse_crontab(schedule.cron(make_job(tmp_path), environment))
    expected = {**environment, "TIKTOKEN_CACHE_DIR": str(tmp_path / "rank files")}
    expected["REQUESTS_CA_BUNDLE"] = str(tmp_path / "certificates" / "@ours.pem")
    del expected["EDITOR"]
    assert {name: variables.get(name) for name in expected} == expected
    assert "EDITOR" not in variables
    service, _ = units(schedule.systemd(make_job(tmp_path), environment))
    written = [unquote(value) for value in service["Service"]["Environment"].splitlines()]
    assert [f"{name}={value}" for name, value in expected.items()] == [item for [item] in written[1:]]


@pytest.mark.parametrize("write", [schedule.cron, schedule.systemd])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "hf_hunter2"),
        ("HTTPS_PROXY", "http://me:hunter2@proxy.example:3128"),
        ("http_proxy", "me:hunter2@proxy.example:3128"),
        ("ALL_PROXY", "socks5://me:hunter2@proxy.example:1080"),
        ("all_proxy", "socks5h://me:hunter2@proxy.example:1080"),
        ("HF_ENDPOINT", "https://mirror.example/?key=hunter2"),
        ("HF_ENDPOINT", "https://me:hunter2@mirror.example"),
    ],
)
def test_secrets_are_never_written(tmp_path: Path, write: Any, name: str, value: str) -> None:
    text = write(make_job(tmp_path), {name: value})
    assert "hunter2" not in text
    [line] = [line for line in text.splitlines() if f"{name}=" in line]
    assert line.startswith("#")


def test_default_environment_is_that_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert "\nHF_ENDPOINT=https://mirror.example\n" in schedule.cron(make_job(tmp_path))


@pytest.mark.parametrize("at", ["", "24:00", "3:30", "03:60", "03:30:00", "３:30", "03:30\n"])
def test_invalid_time_raises_bad_config(tmp_path: Path, at: str) -> None:
    with pytest.raises(BadConfig, match="must be a time of day"):
        make_job(tmp_path, at=at)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"through": "tokenise"}, "no stage"),
        ({"ping_url": "hc.example/ping"}, "must be a URL"),
        ({"ping_url": "https:///ping"}, "must be a URL"),
        ({"ping_url": "https://hc.example/a b"}, "must not contain a password or a blank"),
        ({"ping_url": "https://me:hunter2@hc.example/"}, "must not contain a password or a blank"),
        ({"ping_url": "me:hunter2@hc.example"}, "must not contain a password or a blank"),
        ({"root": Path("/data/new\nline")}, "cannot be written"),
        ({"root": Path(os.fsdecode(b"/data/\xff"))}, "cannot be written"),
    ],
)
def test_invalid_job_raises_bad_config(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=message) as caught:
        make_job(tmp_path, **options)
    assert "hunter2" not in str(caught.value)


def test_missing_recipe_raises_input_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such recipe"):
        make_job(tmp_path, recipe=tmp_path / "none.toml")


def test_paths_become_absolute_but_links_are_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("python").symlink_to(sys.executable)
    job = make_job(tmp_path, root=Path("artifacts"), python=Path("python"))
    assert (job.root, job.python) == (tmp_path / "artifacts", tmp_path / "python")


def units(text: str) -> Iterator[configparser.ConfigParser]:
    """Parse the unit files in a text. A repeated key has its values joined by newlines."""
    for part in re.split(r"^# file: .*\n", text, flags=re.MULTILINE)[1:]:
        parsed = configparser.ConfigParser(interpolation=None, strict=False, delimiters="=", comment_prefixes="#")
        parsed.optionxform = str  # type: ignore[assignment,method-assign]
        values: dict[str, list[str]] = {}
        section = ""
        for line in part.splitlines():
            section = line if line.startswith("[") else section
            if "=" in line and not line.startswith("#"):
                values.setdefault(f"{section}{line.partition('=')[0]}", []).append(line.partition("=")[2])
        parsed.read_string(part)
        for section in parsed.sections():
            for key in parsed[section]:
                parsed[section][key] = "\n".join(values[f"[{section}]{key}"])
        yield parsed


def unquote(value: str) -> list[str]:
    """Return the items of a list in a unit file, by the quoting rules of systemd.syntax(7) used here."""
    items = re.findall(r'"((?:[^"\\]|\\.)*)"', value)
    assert " ".join(f'"{item}"' for item in items) == value
    return [re.sub(r"\\(.)", r"\1", item).replace("%%", "%") for item in items]


def file_names(text: str) -> list[str]:
    return re.findall(r"^# file: (.*)$", text, flags=re.MULTILINE)


def test_service_runs_same_command_with_limits(
    odd_job: ScheduledRefresh,
) -> None:
    service, timer = units(schedule.systemd(odd_job, {"TIKTOKEN_CACHE_DIR": "/ranks"}))
    options = dict(service["Service"])
    [program, *rest] = unquote(options.pop("ExecStart"))
    assert [program.removeprefix(":"), *rest] == odd_job.command()
    assert options.pop("WorkingDirectory").replace("%%", "%") == f"{odd_job.program.parent}/"
    assert unquote(options.pop("ReadWritePaths")) == [str(odd_job.root), "-/ranks"]
    assert options == {
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


@pytest.mark.parametrize(("root", "private"), [("/data/artifacts", "yes"), ("/var/tmp/artifacts", "no")])
def test_service_with_paths_in_tmp_has_no_private_tmp(tmp_path: Path, root: str, private: str) -> None:
    recipe = ROOT / "pipeline" / "recipes" / "sample.toml"
    job = make_job(tmp_path, recipe=recipe, root=Path(root), python=Path("/usr/bin/python3"), program=Path("/x/cli.py"))
    service, _ = units(schedule.systemd(job, {}))
    assert service["Service"]["PrivateTmp"] == private if not str(recipe).startswith("/tmp/") else "no"


@pytest.mark.parametrize("name", ["it's", 'a "b"', "a\\b"])
def test_python_path_that_systemd_rejects_raises_bad_config(tmp_path: Path, name: str) -> None:
    job = make_job(tmp_path, python=tmp_path / name / "python")
    with pytest.raises(BadConfig, match="systemd starts no program"):
        schedule.systemd(job, {})
    assert schedule.cron(job, {})


def test_unit_names_are_unique_to_recipe(tmp_path: Path) -> None:
    folder = "~/.config/systemd/user"
    plain = schedule.systemd(make_job(tmp_path), {})
    assert file_names(plain) == [f"{folder}/inkstone-book.service", f"{folder}/inkstone-book.timer"]
    assert "systemctl --user enable --now inkstone-book.timer\n" in plain
    names = [file_names(schedule.systemd(make_job(tmp_path, name=name), {})) for name in ("水浒", "红楼", "c+", "c-")]
    assert len({name for pair in names for name in pair}) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9._/~-]+", name) for pair in names for name in pair)


def save_units(text: str, folder: Path) -> list[Path]:
    """Save the unit files under their names, as the printed comments instruct."""
    names = [Path(name).name for name in file_names(text)]
    for name, part in zip(names, re.split(r"^# file: .*\n", text, flags=re.MULTILINE)[1:], strict=True):
        (folder / name).write_text(part, encoding="utf-8")
    return [folder / name for name in names]


def test_systemd_analyze_accepts_units(odd_job: ScheduledRefresh, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze") or pytest.skip("no systemd-analyze here")
    paths = save_units(schedule.systemd(odd_job, {}), tmp_path)
    process = subprocess.run([analyze, "verify", *map(str, paths)], capture_output=True, text=True, check=False)
    warnings = [line for line in process.stderr.splitlines() if "inkstone" in line]
    assert (process.returncode, warnings) == (0, [])
    paths[0].write_text(paths[0].read_text(encoding="utf-8").replace("%%", "%"), encoding="utf-8")
    process = subprocess.run([analyze, "verify", *map(str, paths)], capture_output=True, text=True, check=False)
    assert "inkstone-book.service" in process.stderr, "systemd-analyze must reject a broken unit"


def test_systemd_parses_every_path_unchanged(odd_job: ScheduledRefresh) -> None:
    manager = Path("/lib/systemd/systemd")
    if not manager.exists() or not shutil.which("setpriv"):
        pytest.skip("no systemd or setpriv here to parse units")
    with tempfile.TemporaryDirectory() as name:  # tmp_path is accessible to its owner only
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
        process = subprocess.run(
            command, env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True, check=False
        )
    if "Unit inkstone-book.service" not in process.stdout:
        pytest.skip(f"systemd did not load the units here: {process.stderr[-200:]}")
    parsed_unit = process.stdout.partition("-> Unit inkstone-book.service")[2].partition("\t-> Unit ")[0]
    assert f'ReadWritePaths: {odd_job.root} -/a b%"c\\d\n' in parsed_unit
    assert 'Environment: TIKTOKEN_CACHE_DIR=/a b%"c\\d\n' in parsed_unit
    assert f"WorkingDirectory: {odd_job.program.parent}\n" in parsed_unit
    escaped = [word.replace('"', '\\"') for word in odd_job.command()]
    arguments = [f'"{word}"' if re.search(r"[\s\"']", word) else word for word in escaped]
    assert f"Command Line: {' '.join(arguments)}\n" in parsed_unit
