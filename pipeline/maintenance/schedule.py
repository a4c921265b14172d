"""Schedules for a nightly refresh: text for cron or systemd, printed for a person to install.

cron and systemd start a program without a terminal and with an almost empty environment, and each has its own quoting
rules. The text therefore contains everything that a run needs: absolute paths, the locale and the servers that data
comes from. It never contains credentials, because these files are read, mailed and backed up.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import BadConfig
from pipeline.maintenance.doctor import under_cron

# Variables that decide where data comes from are copied. Programs read proxies under either spelling.
_PROXIES = tuple(
    name for upper in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY") for name in (upper, upper.lower())
)
_CACHES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "XDG_CACHE_HOME")
_PATHS = (*_CACHES, "REQUESTS_CA_BUNDLE")
_COPIED = ("HF_ENDPOINT", *_PROXIES, *_PATHS)
_CREDENTIALS = ("HF_TOKEN",)
_PATH = "/usr/local/bin:/usr/bin:/bin"
_LOCALE = "C.UTF-8"
_DEFAULT_HOUR = 3
_DRY_RUN = "--dry-run"
_MAX_RUN = "20h"  # then SIGTERM makes it save and exit, so that the next night's run finds the lock free
_MAX_SAVE = "30min"
_MAX_CRON_LINE = 998  # bytes; Vixie cron (Debian) silently truncates longer lines
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # control characters end a line; surrogates have no bytes


@dataclass(frozen=True, kw_only=True)
class ScheduledRefresh:
    """A recipe to refresh every day. Paths become absolute.

    recipe    path of the recipe
    root      folder of all artifacts
    python    interpreter that runs `program`, the cli.py
    at        time of day on this machine's clock, HH:MM; None for a minute after 03:00 that differs between recipes
    through   last stage to run, "" for all
    ping_url  monitor to notify, "" for none
    time      `at`, or the time chosen
    name      the recipe's name
    inputs    files and folders that the recipe names

    Raises BadConfig for an invalid value and InputMissing if there is no such recipe, now rather than at night.
    """

    recipe: Path
    root: Path
    python: Path
    program: Path
    at: str | None = None
    through: str = ""
    ping_url: str = ""
    time: str = field(init=False)
    name: str = field(init=False)
    inputs: tuple[Path, ...] = field(init=False)

    def __post_init__(self) -> None:
        from pipeline.refresh.recipe import load as load_recipe
        from pipeline.refresh.recipe import local_paths
        from pipeline.refresh.stages import STAGES, TUNINGS

        if self.at is not None and not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", self.at):
            raise BadConfig(f"--at must be a time of day, got {self.at}", hint="for example 03:30 or 22:15")
        if self.through and self.through not in (*STAGES, *TUNINGS):
            raise BadConfig(f"no stage {self.through!r}", hint=f"stages: {', '.join((*STAGES, *TUNINGS))}")
        if self.ping_url:
            _check_url(self.ping_url)
        for path in ("recipe", "root", "python", "program"):
            # Not resolved: python finds its virtual environment by the path of the link that started it.
            object.__setattr__(self, path, getattr(self, path).absolute())
            _check_text(str(getattr(self, path)))
        recipe = load_recipe(self.recipe)
        object.__setattr__(self, "name", recipe.name)
        object.__setattr__(self, "inputs", local_paths(recipe))
        object.__setattr__(self, "time", self.at or f"{_DEFAULT_HOUR:02}:{_minute(self.name, self.root):02}")

    def is_temporary(self) -> bool:
        """Return True if any path is below /tmp or /var/tmp, which PrivateTmp= would hide from the service."""
        paths = (self.recipe, self.root, self.python, self.program, *self.inputs)
        return any(path.is_relative_to(folder) for path in paths for folder in ("/tmp", "/var/tmp"))

    def command(self) -> list[str]:
        """Return the arguments of the refresh command: silent on success, with a JSON log."""
        return [
            *(str(self.python), str(self.program), "--artifacts", str(self.root), "-q"),
            *("--log-json", str(self.root / ".state" / f"{self.name}.log.jsonl"), "refresh", str(self.recipe)),
            *(["--through", self.through] if self.through else []),
            *(["--ping-url", self.ping_url] if self.ping_url else []),
        ]


def _minute(name: str, root: Path) -> int:
    """Return the minute at which a recipe runs by default, so that not all recipes start at once."""
    return int.from_bytes(hashlib.sha256(f"{name}\0{root}".encode()).digest()[:8], "big") % 60


def _check_text(text: str) -> None:
    if _UNWRITABLE.search(text):
        raise BadConfig(f"{text!r} cannot be written on one line of text", hint="rename it")


def _check_url(url: str) -> None:
    """Raise BadConfig for an invalid URL. The message never repeats the URL, which may contain a password."""
    if re.search(r"@|\s", url):
        raise BadConfig(
            "--ping-url must not contain a password or a blank", hint="the schedule is printed in plain text"
        )
    if not re.match(r"https?://[^/?#]", url):
        raise BadConfig("--ping-url must be a URL", hint="begin it with https:// or http://")
    _check_text(url)


def cron(job: ScheduledRefresh, environment: Mapping[str, str] = os.environ) -> str:
    """Return lines for a crontab. Variables of `environment` that decide where data comes from are copied.

    Raises BadConfig if a line would be longer than cron reads.
    """
    hour, minute = (int(part) for part in job.time.split(":"))
    copied, withheld = _copied_variables(environment)
    lines = [
        f"# Inkstone: refresh {job.name} every day at {job.time}, by this machine's clock.",
        "# To install it, run `crontab -e`, put these lines at the end and save. `crontab -l` shows what is installed.",
        "# The refresh takes its own lock and a second one exits with 75, so it needs no flock around it.",
        f"# After {_MAX_RUN} it gets SIGTERM: it saves what is complete and exits; the next run resumes.",
        "# Cron mails all output of a run. A successful run prints nothing. Recipient:",
        "# MAILTO=you@example.org",
        "SHELL=/bin/sh",
        f"PATH={_PATH}",
        f"LANG={_LOCALE}",
        *(f"{name}={_cron_value(value)}" for name, value in copied.items()),
        *(_withheld(name, f"{name}=...") for name in withheld),
        f"{minute} {hour} * * * {_cron_command(job)}",
    ]
    if (longest := max(len(line.encode()) for line in lines)) > _MAX_CRON_LINE:
        raise BadConfig(
            f"a line would have {longest} bytes, and cron reads at most {_MAX_CRON_LINE}",
            hint="use --kind systemd, or shorter paths",
        )
    return "\n".join(lines) + "\n"


def check(
    job: ScheduledRefresh, kind: str, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Run the command of the schedule with --dry-run, in an environment as empty as that of cron or systemd.

    `kind` is "cron" or "systemd". Raises OSError if the command cannot be started.
    """
    arguments = [*job.command(), _DRY_RUN]
    if kind == "cron":
        arguments = ["/bin/sh", "-c", f"{_cron_command(job)} {_DRY_RUN}".replace("\\%", "%")]
    copied, _ = _copied_variables(environment)
    return under_cron(arguments, {"PATH": _PATH, "LANG": _LOCALE, **copied})


def _cron_command(job: ScheduledRefresh) -> str:
    words = " ".join(_cron_quoted(word) for word in [*_low_priority(), *job.command()])
    return f"cd {_cron_quoted(str(job.program.parent))} && {words}"


def _low_priority() -> list[str]:
    """Return the command prefix for low priority and a time limit, from the programs that this machine has."""
    prefix: list[str] = []
    for name, *options in (
        ("nice", "-n", "19"),
        ("ionice", "-c3", "-t"),  # -t: run the command even if the class cannot be set
        # --foreground signals only the program, which stops its workers itself after saving.
        ("timeout", "--foreground", "--signal=TERM", "--kill-after=30m", _MAX_RUN),
    ):
        if path := shutil.which(name):
            prefix += [os.path.abspath(path), *options]
    return prefix


def _cron_quoted(word: str) -> str:
    r"""Quote a word for the shell, in a form that cron passes to the shell unchanged.

    Cron reads `%` as the end of the line, `\%` as a percent sign, and some crons read `\\` as one backslash. So no
    backslash of the word itself may be followed by either: after each one the shell's quotes are closed and reopened.
    """
    return shlex.quote(word).replace("\\", "\\''").replace("%", "\\%")


def _cron_value(value: str) -> str:
    """Quote a value after NAME= in a crontab if needed. Cron strips one pair of quotes and has no escapes."""
    if value and value[0] not in "\"'" and value == value.strip():
        return value
    return f"'{value}'" if "'" not in value else f'"{value}"'


def systemd(job: ScheduledRefresh, environment: Mapping[str, str] = os.environ) -> str:
    """Return a service and a timer for systemd's user manager, each below a comment with the path of its file.

    Variables are copied from `environment` as for `cron`. Raises BadConfig if the path of Python contains a quote or a
    backslash, because systemd does not start such a program.
    """
    if re.search(r"[\"'\\]", str(job.python)):
        raise BadConfig(
            f"{job.python}: systemd starts no program with a quote or a backslash in its path",
            hint="use --kind cron, or move it",
        )
    unit = f"inkstone-{_unit_name(job.name)}"
    lines = [
        f"# Inkstone: refresh {job.name} every day at {job.time}, by this machine's clock. To install it:",
        f"#   mkdir -p ~/.config/systemd/user {shlex.quote(str(job.root))}",
        "#   save the two files below under the names above them",
        "#   systemctl --user daemon-reload",
        f"#   systemctl --user enable --now {unit}.timer",
        "#   loginctl enable-linger    (otherwise it runs only while you are logged in)",
        f"# Output of a run: journalctl --user -u {unit}. The refresh takes its own lock; a second one exits with 75.",
        "",
        f"# file: ~/.config/systemd/user/{unit}.service",
        *_service(job, environment),
        "",
        f"# file: ~/.config/systemd/user/{unit}.timer",
        *_timer(job),
    ]
    return "\n".join(lines) + "\n"


def _service(job: ScheduledRefresh, environment: Mapping[str, str]) -> list[str]:
    """Return the lines of the service unit."""
    copied, withheld = _copied_variables(environment)
    writable = [str(job.root)]
    writable += [f"-{copied[name]}" for name in _CACHES if name in copied]  # "-": it may be missing
    return [
        "[Unit]",
        f"Description=Inkstone: refresh {job.name}",
        "",
        "[Service]",
        "Type=oneshot",
        # A single path, which takes no quotes. The slash keeps a blank or a backslash off the end of the line.
        f"WorkingDirectory={_escape_percent(str(job.program.parent))}/",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in {"LANG": _LOCALE, **copied}.items()),
        *(_withheld(name, f"Environment={name}=...") for name in withheld),
        # The colon before the program switches off "$" expansion.
        f"ExecStart={' '.join(map(_quoted, [f':{job.python}', *job.command()[1:]]))}",
        "# 75: another refresh holds the lock, the network is down, or a signal came and everything is saved.",
        "SuccessExitStatus=75",
        f"# After {_MAX_RUN}, or on `systemctl stop`, it gets SIGTERM: it saves what is complete and exits.",
        f"TimeoutStartSec={_MAX_RUN}",
        f"TimeoutStopSec={_MAX_SAVE}",
        "KillMode=mixed",
        "Nice=19",
        "IOSchedulingClass=idle",
        "MemoryMax=80%",
        "NoNewPrivileges=yes",
        "# It may write to the artifacts folder only. A user manager needs PrivateUsers= for that. If the kernel does",
        "# not allow user namespaces, delete the next four lines.",
        "PrivateUsers=yes",
        f"PrivateTmp={'no' if job.is_temporary() else 'yes'}",
        "ProtectSystem=strict",
        f"ReadWritePaths={' '.join(map(_quoted, writable))}",
    ]


def _timer(job: ScheduledRefresh) -> list[str]:
    """Return the lines of the timer unit."""
    return [
        "[Unit]",
        f"Description=Inkstone: refresh {job.name} every day",
        "",
        "[Timer]",
        f"OnCalendar=*-*-* {job.time}:00",
        "# A run missed while the machine was off runs after the next start.",
        "Persistent=true",
        "RandomizedDelaySec=15min",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]


def _unit_name(name: str) -> str:
    """Return `name` with characters that unit names cannot contain replaced, and a hash that keeps it unique."""
    sanitized = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    return (
        name
        if sanitized == name
        else f"{sanitized.strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")
    )


def _escape_percent(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """Quote one list item of a unit file: systemd.syntax(7), "Quoting", and systemd.unit(5), "Specifiers"."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_escape_percent(escaped)}"'


def _copied_variables(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables to write, and the names of set variables that must not or cannot be written."""
    copied, withheld = {}, [name for name in _CREDENTIALS if environment.get(name)]
    for name in (name for name in _COPIED if environment.get(name)):
        value = os.path.abspath(environment[name]) if name in _PATHS else environment[name]
        # In a URL a password precedes "@", and a key may follow "?".
        may_hold_secret = name not in _PATHS and ("@" in value or "?" in value)
        if may_hold_secret or _UNWRITABLE.search(value):
            withheld.append(name)
        else:
            copied[name] = value
    return copied, withheld


def _withheld(name: str, line: str) -> str:
    return f"# {name} is set but not written here, because it may hold a secret. If a run needs it: {line}"
