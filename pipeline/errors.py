"""The ways a command can fail, each with the exit code that scripts and cron can act on.

The codes are those of BSD's sysexits.h where one fits, and 10 to 12 for this project's own decisions.
A message is one line: what went wrong and where; `hint` says what to do next.
"""

from __future__ import annotations

import errno
import os


class InkstoneError(Exception):
    """A failure that the person at the keyboard can act on."""

    exit_code = 70
    told = False  # by another process, to the same person

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions travel back from worker processes by pickle, which would lose keyword arguments.
        return (_rebuild, (type(self), self.what, self.hint))


def _rebuild(kind: type[InkstoneError], what: str, hint: str) -> InkstoneError:
    return kind(what, hint=hint)


class UpstreamChanged(InkstoneError):
    """The upstream file differs from what was pinned; the old data was kept."""

    exit_code = 10


class TooManyRejects(InkstoneError):
    """More documents were bad than `--max-bad` allows; nothing was published."""

    exit_code = 11


class TrainingDiverged(InkstoneError):
    """The loss became infinite or not a number; the last good checkpoint was kept."""

    exit_code = 12


class BadData(InkstoneError):
    """The content is not what it should be: broken, truncated, empty, or of the wrong kind."""

    exit_code = 65


def broken(file: str, what: str) -> BadData:
    """The error for a part of an export that does not read back as what was to be written."""
    return BadData(f"{file}: {what}", hint="nothing was exported; try again, and check the disk if it happens again")


class InputMissing(InkstoneError):
    """A file or an artifact that was named does not exist."""

    exit_code = 66


class RemoteGone(InkstoneError):
    """The server says that the file does not exist (404, 410)."""

    exit_code = 69


class InternalError(InkstoneError):
    """A promise of this program to itself was broken: a bug."""

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
    """Nothing is wrong that time does not mend: a lock is held, the network is away, a signal came."""

    exit_code = 75


class ProtocolBroken(InkstoneError):
    """A server answered in a way that cannot be trusted."""

    exit_code = 76


class NotPermitted(InkstoneError):
    """The system does not permit it."""

    exit_code = 77


class BadConfig(InkstoneError):
    """An option, a recipe or a preset that cannot be."""

    exit_code = 78


class Interrupted(InkstoneError):
    """Ctrl-C came before a safe point."""

    exit_code = 130


_LONG = 100  # characters: more than any system needs to say what is wrong
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
    errno.ENOTDIR: (CannotCreate, "a file stands where a folder is needed"),
    errno.EEXIST: (CannotCreate, "move what is there away first"),
    errno.ENAMETOOLONG: (BadConfig, "choose a shorter name"),
}


def from_os_error(error: OSError) -> InkstoneError:
    """The InkstoneError that says what `error` means for the person who ran the command."""
    kind, hint = _BY_ERRNO.get(
        error.errno or 0, (StorageFailed, "see the cause above, then run the same command again")
    )
    where = f"{error.filename}: " if error.filename else ""
    said = " ".join((error.strerror or str(error)).lower().split())
    if error.errno and len(said) > _LONG:  # HDF5 makes a paragraph of it
        said = os.strerror(error.errno).lower()
    return kind(f"{where}{said[:300]}", hint=hint)


def explain(error: BaseException) -> InkstoneError:
    """What any error means for the person who ran the command."""
    if isinstance(error, InkstoneError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted", hint="the same command goes on where it can, or starts over")
    if isinstance(error, OSError):
        return from_os_error(error)
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return InternalError(what, hint="a bug of this program; --debug shows where")
