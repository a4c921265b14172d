"""A nightly refresh: the text that makes cron or systemd run it. Printed, for a person to install; never installed.

cron and systemd start a program with next to no environment and no terminal, and each has its own rules for what a
line means. All that a run needs is therefore in the text: absolute paths, the language, where the data comes from.
Never a credential: these files are read, mailed and backed up.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import BadConfig

# What is set now and decides where data comes from. Programs read the proxies under both spellings.
_PROXIES = tuple(name for each in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY") for name in (each, each.lower()))
_FOLDERS = ("TIKTOKEN_CACHE_DIR",)
_CARRIED = ("HF_ENDPOINT", *_PROXIES, *_FOLDERS)
_CREDENTIALS = ("HF_TOKEN",)
_LANGUAGE = "C.UTF-8"
_LONGEST_RUN = "20h"  # then it is told to save and end: the next night's run shall find the lock free
_LONGEST_SAVE = "30min"
_LONGEST_CRON_LINE = 998  # bytes: Vixie's cron, which Debian has, cuts a longer one off without a word
_CANNOT_BE_WRITTEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # a line ends at it, or it is no character at all


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe to refresh every day at `at`, a time of this machine's clock. Paths become absolute.

    `python` runs `program`, the cli.py; `root` is the folder of artifacts; `name` is the recipe's. "" for `through`
    means all stages, "" for `ping_url` nobody to tell. Raises BadConfig for what cannot be, InputMissing where there
    is no such recipe: better now than at night.
    """

    recipe: Path
    root: Path
    python: Path
    program: Path
    at: str = "03:30"
    through: str = ""
    ping_url: str = ""
    name: str = field(init=False)

    def __post_init__(self) -> None:
        from pipeline.refresh import recipe as recipes
        from pipeline.refresh.stages import STAGES

        if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", self.at):
            raise BadConfig(f"--at {self.at}: no time of day", hint="hours and minutes, as 03:30 or 22:15")
        if self.through and self.through not in STAGES:
            raise BadConfig(f"no stage {self.through!r}", hint=f"stages: {', '.join(STAGES)}")
        if self.ping_url:
            _check_url(self.ping_url)
        for path in ("recipe", "root", "python", "program"):
            # Not resolved: the python of a virtual environment is a link, and only as that link is it the right one.
            object.__setattr__(self, path, getattr(self, path).absolute())
            _check_text(str(getattr(self, path)))
        object.__setattr__(self, "name", recipes.load(self.recipe).name)

    def is_temporary(self) -> bool:
        """Whether a part of it lies where a service with a /tmp of its own would not find it."""
        parts = (self.recipe, self.root, self.python, self.program)
        return any(path.is_relative_to(folder) for path in parts for folder in ("/tmp", "/var/tmp"))

    def command(self) -> list[str]:
        """The words of the command that refreshes: silent when all went well, with a log to look into."""
        return [
            *(str(self.python), str(self.program), "--artifacts", str(self.root), "-q"),
            *("--log-json", str(self.root / ".state" / f"{self.name}.log.jsonl"), "refresh", str(self.recipe)),
            *(["--through", self.through] if self.through else []),
            *(["--ping-url", self.ping_url] if self.ping_url else []),
        ]


def _check_text(text: str) -> None:
    if _CANNOT_BE_WRITTEN.search(text):
        raise BadConfig(f"{text!r} cannot be written on one line of text", hint="rename it")


def _check_url(url: str) -> None:
    """Raise BadConfig, which never repeats the address: a password may stand in it."""
    if re.search(r"@|\s", url):
        raise BadConfig("--ping-url: holds a password or a blank", hint="what is printed here is no secret")
    if not re.match(r"https?://[^/?#]", url):
        raise BadConfig("--ping-url: not an address", hint="it begins with https:// or http://")
    _check_text(url)


def cron(job: Job, environment: Mapping[str, str] = os.environ) -> str:
    """Lines for a crontab. Raises BadConfig where one would be longer than cron reads.

    `environment` is that of now: what in it decides where data comes from is carried over.
    """
    hour, minute = (int(part) for part in job.at.split(":"))
    words = " ".join(_cron_quoted(word) for word in [*_kindly(), *job.command()])
    command = f"cd {_cron_quoted(str(job.program.parent))} && {words}"
    carried, withheld = _carry(environment)
    lines = [
        f"# Inkstone: refresh {job.name} every day at {job.at}, by this machine's clock.",
        "# To install it, run `crontab -e`, put these lines at the end and save. `crontab -l` shows what is installed.",
        "# The refresh takes its lock itself, and a second one exits 75: no flock around it is needed.",
        f"# After {_LONGEST_RUN} it gets SIGTERM: it finishes its unit, saves and exits 75; the next run goes on.",
        "# Cron mails whatever a run prints; one that goes well prints nothing. To whom:",
        "# MAILTO=you@example.org",
        "SHELL=/bin/sh",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        f"LANG={_LANGUAGE}",
        *(f"{name}={_cron_value(value)}" for name, value in carried.items()),
        *(_withheld(name, f"{name}=...") for name in withheld),
        f"{minute} {hour} * * * {command}",
    ]
    if (longest := max(len(line.encode()) for line in lines)) > _LONGEST_CRON_LINE:
        raise BadConfig(
            f"a line would be {longest} bytes long, and cron reads {_LONGEST_CRON_LINE}",
            hint="use systemd, or shorter paths",
        )
    return "\n".join(lines) + "\n"


def _kindly() -> list[str]:
    """The words before a command that make it yield to all other work and end in time, as far as this machine can."""
    found: list[str] = []
    for name, *options in (
        ("nice", "-n", "19"),
        ("ionice", "-c3", "-t"),  # -t: where it may not, go on without
        # In the foreground the signal goes to the program alone, which stops its own workers when it has saved.
        ("timeout", "--foreground", "--signal=TERM", "--kill-after=30m", _LONGEST_RUN),
    ):
        if path := shutil.which(name):
            found += [os.path.abspath(path), *options]
    return found


def _cron_quoted(word: str) -> str:
    r"""A word for the shell, in a form that cron hands to it unchanged.

    To cron `%` is the end of the line, `\%` a percent sign, and for some crons `\\` one backslash: no backslash of the
    word's own may stand before either, so each is followed by an end and a new beginning of the shell's quotes.
    """
    return shlex.quote(word).replace("\\", "\\''").replace("%", "\\%")


def _cron_value(value: str) -> str:
    """A value after NAME= in a crontab. Cron takes one pair of quotes around it away, and knows no escapes."""
    if value and value[0] not in "\"'" and value == value.strip():
        return value
    return f"'{value}'" if "'" not in value else f'"{value}"'


def systemd(job: Job, environment: Mapping[str, str] = os.environ) -> str:
    """A service and a timer for systemd's user manager, each below a comment with the path of its file.

    `environment` as for `cron`. Raises BadConfig for a Python that systemd would not start for its path.
    """
    if re.search(r"[\"'\\]", str(job.python)):
        raise BadConfig(
            f"{job.python}: systemd starts no program with a quote in its path", hint="use cron, or move it"
        )
    carried, withheld = _carry(environment)
    unit = f"inkstone-{_unit_name(job.name)}"
    writable = [str(job.root)]
    if cache := carried.get("TIKTOKEN_CACHE_DIR"):
        writable.append(f"-{cache}")  # "-": it need not exist
    service = [
        "[Unit]",
        f"Description=Inkstone: refresh {job.name}",
        "",
        "[Service]",
        "Type=oneshot",
        # Not a list, so without quotes; the slash keeps a blank or a backslash away from the end of the line.
        f"WorkingDirectory={_percent(str(job.program.parent))}/",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in {"LANG": _LANGUAGE, **carried}.items()),
        *(_withheld(name, f"Environment={name}=...") for name in withheld),
        # The colon before the program: "$" is a character like any other.
        f"ExecStart={' '.join(map(_quoted, [f':{job.python}', *job.command()[1:]]))}",
        "# 75: another refresh holds the lock, the network is away, or a signal came and all is saved.",
        "SuccessExitStatus=75",
        f"# After {_LONGEST_RUN}, or told to stop, it gets SIGTERM: it finishes its unit, saves and exits 75.",
        f"TimeoutStartSec={_LONGEST_RUN}",
        f"TimeoutStopSec={_LONGEST_SAVE}",
        "KillMode=mixed",
        "Nice=19",
        "IOSchedulingClass=idle",
        "MemoryMax=80%",
        "NoNewPrivileges=yes",
        "# It may write below the artifacts and nowhere else. A user's manager needs PrivateUsers= for that; where the",
        "# kernel does not let users have namespaces, take out the four lines that follow.",
        "PrivateUsers=yes",
        f"PrivateTmp={'no' if job.is_temporary() else 'yes'}",
        "ProtectSystem=strict",
        f"ReadWritePaths={' '.join(map(_quoted, writable))}",
    ]
    timer = [
        "[Unit]",
        f"Description=Inkstone: refresh {job.name} every day",
        "",
        "[Timer]",
        f"OnCalendar=*-*-* {job.at}:00",
        "# A run that was missed because the machine was off is made up for.",
        "Persistent=true",
        "RandomizedDelaySec=15min",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    lines = [
        f"# Inkstone: refresh {job.name} every day at {job.at}, by this machine's clock. To install it:",
        f"#   mkdir -p ~/.config/systemd/user {shlex.quote(str(job.root))}",
        "#   save the two files below under the names above them",
        "#   systemctl --user daemon-reload",
        f"#   systemctl --user enable --now {unit}.timer",
        "#   loginctl enable-linger    (else it runs only while you are logged in)",
        f"# What a run said: journalctl --user -u {unit}. The refresh takes its lock itself; a second one exits 75.",
        "",
        f"# file: ~/.config/systemd/user/{unit}.service",
        *service,
        "",
        f"# file: ~/.config/systemd/user/{unit}.timer",
        *timer,
    ]
    return "\n".join(lines) + "\n"


def _unit_name(name: str) -> str:
    """`name` with nothing in it that the name of a unit cannot hold, and still no other recipe's."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    return name if plain == name else f"{plain.strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """One item of a list in a unit file: systemd.syntax(7), "Quoting", and systemd.unit(5), "Specifiers"."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_percent(escaped)}"'


def _carry(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The variables to write, and the names of those that are set and must not or cannot be written."""
    carried, withheld = {}, [name for name in _CREDENTIALS if environment.get(name)]
    for name in (name for name in _CARRIED if environment.get(name)):
        value = os.path.abspath(environment[name]) if name in _FOLDERS else environment[name]
        # In an address "@" follows a password, and "?" comes before a key.
        secret = name not in _FOLDERS and ("@" in value or "?" in value)
        if secret or _CANNOT_BE_WRITTEN.search(value):
            withheld.append(name)
        else:
            carried[name] = value
    return carried, withheld


def _withheld(name: str, line: str) -> str:
    return f"# {name} is set now and not written here, as it may hold a secret. If a run needs it: {line}"
