"""Exceptions, each with the exit code that scripts and cron can act on.

The codes are those of BSD's sysexits.h where one fits, and 10 to 12 for this project's own decisions.
A message is one line: the subject and the problem. `hint` says what to do next.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

DISTRIBUTION = "inkstone-gpt"  # the name that pip installs
_EXTRAS = {  # of setup.cfg, by package or module
    "rensa": "dedup",
    "opencc": "zh",
    "tensorboard": "logging",
    "gguf": "exchange",
    "starlette": "serve",
    "uvicorn": "serve",
    "obstore": "scale",
    "ray": "scale",
}
_OWN_MODULES = ("cli", "pipeline", "model", "benchmarks", "tests")
_IS_CHECKOUT = (Path(__file__).resolve().parent.parent / "setup.cfg").is_file()


class InkstoneError(Exception):
    """A failure that the user can act on."""

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.already_reported = False  # True once another process has reported the error to the same user

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions return from worker processes by pickle, which would lose keyword arguments.
        return (_rebuild, (type(self), self.message, self.hint))


def install_command(extra: str) -> str:
    """Return the command that installs an optional extra, for a checkout or for an installed package."""
    return f"pip install -e '.[{extra}]'" if _IS_CHECKOUT else f"pip install '{DISTRIBUTION}[{extra}]'"


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return "did you mean NAME? " with the most similar of `names`, as the beginning of a hint; "" if none is."""
    import difflib

    similar = difflib.get_close_matches(name, [other for other in names if other != name], 1)
    return f"did you mean {similar[0]}? " if similar else ""


def missing_package(package: str) -> BadConfig:
    """Return the error for a package that is not installed, with the command that installs it."""
    extra = _EXTRAS.get(package.lower())
    return BadConfig(
        f"this needs the Python package {package}, which is not installed",
        hint=install_command(extra) if extra else f"pip install {package}",
    )


def _rebuild(error_class: type[InkstoneError], message: str, hint: str) -> InkstoneError:
    return error_class(message, hint=hint)


class UpstreamChanged(InkstoneError):
    """The upstream file differs from the pinned one; the old data was kept."""

    exit_code = 10


class TooManyRejects(InkstoneError):
    """More documents were bad than `--max-bad` allows; nothing was published."""

    exit_code = 11


class TrainingDiverged(InkstoneError):
    """The loss became infinite or NaN; the last good checkpoint was kept."""

    exit_code = 12


class BadData(InkstoneError):
    """The content is broken, truncated, empty or of the wrong kind."""

    exit_code = 65


def export_mismatch(file: str, problem: str) -> BadData:
    """Return the error for an exported file that does not read back as it was written."""
    return BadData(f"{file}: {problem}", hint="nothing was exported; try again, and check the disk if it happens again")


class InputMissing(InkstoneError):
    """A file or an artifact named by the user does not exist."""

    exit_code = 66


class RemoteGone(InkstoneError):
    """The server reports that the file does not exist (404, 410)."""

    exit_code = 69


class InternalError(InkstoneError):
    """An invariant of this program was violated: a bug."""

    exit_code = 70


class WorkerLost(InkstoneError):
    """A worker process was killed, most often by the system for lack of memory."""

    exit_code = 71


class CannotCreate(InkstoneError):
    """An output could not be created."""

    exit_code = 73


class StorageFailed(InkstoneError):
    """The disk is full, or reading or writing it failed."""

    exit_code = 74


class TryAgain(InkstoneError):
    """A temporary obstacle: a lock is held, the network is down, a signal stopped the command."""

    exit_code = 75


class NodeLost(TryAgain):
    """Another process of a training ended, or its node can no longer be reached."""


class ProtocolBroken(InkstoneError):
    """A server's answer cannot be trusted."""

    exit_code = 76


class NotPermitted(InkstoneError):
    """The system denied permission."""

    exit_code = 77


class BadConfig(InkstoneError):
    """An option, a recipe or a preset is invalid."""

    exit_code = 78


class Interrupted(InkstoneError):
    """The user pressed Ctrl-C before a safe point."""

    exit_code = 130


class TerminatedEarly(InkstoneError):
    """SIGTERM ended the command before a safe point."""

    exit_code = 143


class Terminated(KeyboardInterrupt):
    """The command reached no safe point in time after SIGTERM. Code that handles Ctrl-C handles this too."""


_SURROGATE = re.compile("[\ud800-\udfff]")  # how Python keeps a byte of a name that is not UTF-8
_CONTEXT = 30  # characters before and after one, in an error
_MAX_REASON = 100  # characters: no operating system needs more to name an error
_BY_ERRNO: dict[int, tuple[type[InkstoneError], str]] = {
    errno.ENOSPC: (StorageFailed, "free some space, or inodes (`df -i`), then run the same command again"),
    errno.EDQUOT: (StorageFailed, "free some of your quota, then run the same command again"),
    errno.EIO: (StorageFailed, "check the disk before trying again"),
    errno.EMFILE: (StorageFailed, "too many files are open: raise the limit with `ulimit -n`"),
    errno.ENFILE: (StorageFailed, "too many files are open on this machine"),
    errno.EFBIG: (StorageFailed, "raise the limit with `ulimit -f`"),
    errno.EROFS: (CannotCreate, "choose a writable folder with --artifacts"),
    errno.EACCES: (NotPermitted, "check the permissions, or choose another folder with --artifacts"),
    errno.EPERM: (NotPermitted, "check the permissions, or choose another folder with --artifacts"),
    errno.ENOENT: (InputMissing, "check the path"),
    errno.EISDIR: (InputMissing, "name a file instead of a folder"),
    errno.ENOTDIR: (CannotCreate, "a file exists where a folder is needed"),
    errno.EEXIST: (CannotCreate, "move the existing file or folder away first"),
    errno.ENAMETOOLONG: (BadConfig, "choose a shorter name"),
}


def from_os_error(error: OSError) -> InkstoneError:
    """Return the InkstoneError for `error`: class by errno, the file it names, and a hint."""
    error_class, hint = _BY_ERRNO.get(
        error.errno or 0, (StorageFailed, "see the cause above, then run the same command again")
    )
    prefix = f"{error.filename}: " if error.filename else ""
    reason = " ".join((error.strerror or str(error)).lower().split())
    if error.errno and len(reason) > _MAX_REASON:  # HDF5 writes a paragraph
        reason = os.strerror(error.errno).lower()
    return error_class(f"{prefix}{reason[:300]}", hint=hint)


def to_inkstone_error(error: BaseException) -> InkstoneError:
    """Convert any exception to the InkstoneError that is shown to the user."""
    if isinstance(error, InkstoneError):
        return error
    if isinstance(error, KeyboardInterrupt):
        hint = "run the same command again: it resumes where it can, or starts from the beginning"
        if isinstance(error, Terminated):
            return TerminatedEarly("ended by SIGTERM before a safe point", hint=hint)
        return Interrupted("interrupted", hint=hint)
    if isinstance(error, OSError):
        return from_os_error(error)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] not in _OWN_MODULES:
        return missing_package(error.name.split(".")[0])
    if isinstance(error, UnicodeEncodeError) and _SURROGATE.match(error.object, error.start):
        name = " ".join(error.object[max(0, error.start - _CONTEXT) : error.end + _CONTEXT].split())
        return BadConfig(f"{name!a}: not UTF-8", hint="rename the file, or write the option in UTF-8")
    if isinstance(error, ValueError) and "embedded null" in str(error):  # from the system, about a path
        return BadConfig("a path contains a NUL character", hint="check the paths and names")
    if isinstance(error, MemoryError):
        return WorkerLost("out of memory", hint="use fewer --jobs or smaller values, or split the input")
    message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return InternalError(message, hint="this is a bug; run the command with --debug to see where")
