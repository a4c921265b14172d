"""Buckets: object stores (S3, GCS, Azure), and a local folder by the same code, with conditional writes.

Credentials come from the environment of the process, as the SDK of each store reads them (`AWS_ACCESS_KEY_ID`,
`GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_KEY`, …), and are never part of a URL, a file or a message.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.errors import (
    BadConfig,
    BadData,
    InkstoneError,
    InputMissing,
    NotPermitted,
    ProtocolBroken,
    TryAgain,
    UpstreamChanged,
)
from pipeline.store import locks
from pipeline.store.manifest import KINDS

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ClientConfig, ObjectStore

_URL = re.compile(r"(s3|gs|az|file)://")
_LOCK = ".bucket.lock"  # in a local folder, whose files have no compare-and-swap
_CLIENT: ClientConfig = {
    "allow_http": True,  # http is used only if a URL that the user set says so
    "connect_timeout": "10s",
    "read_timeout": "60s",
    "timeout": "24h",  # of one object; the default of 30 seconds would end every large transfer
}
_PART = 16 << 20  # bytes of a part of an upload: 10,000 of them are 160 GB
_MAX_REASON = 160  # characters
_MAX_SMALL = 1 << 28  # bytes of an object that is read into memory; the same limit as for a manifest


@dataclass(frozen=True)
class Object:
    """An object of a bucket: its name below the prefix, and the size and version that it had when it was listed."""

    name: str
    size: int
    version: UpdateVersion = field(compare=False)

    @property
    def tag(self) -> str:
        return self.version.get("e_tag") or self.version.get("version") or ""


class _Refused(InkstoneError):
    """The condition of a write was not met.

    This may be the retry of a write that succeeded: if its answer was lost, the retry finds the object in place.
    """


class _Unsupported(InkstoneError):
    """The store cannot do what was requested."""


def is_url(reference: str) -> bool:
    """Return True if `reference` is the URL of a bucket or of an object in one."""
    return _URL.match(reference) is not None


def split_url(url: str) -> tuple[str, str]:
    """Divide a URL into that of its bucket and the name below it. Raises BadConfig for one with credentials or ".."."""
    parts = urlsplit(url)
    if "@" in parts.netloc or ("?" in url and parts.scheme != "file" and "=" in url.rpartition("?")[2]):
        raise BadConfig(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}: the URL holds credentials or a query",
            hint="set the credentials in the environment, and name only the bucket and the path",
        )
    scheme, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    if not bucket and scheme != "file":
        raise BadConfig(f"{url}: no bucket in the URL", hint="for example s3://bucket/prefix")
    if ".." in name.split("/"):
        raise BadConfig(f"{url}: expected no '..' in the URL", hint="write the name as the store lists it")
    return f"{scheme}://{bucket or '/'}", name.strip("/")


class Bucket:
    """Objects below the prefix of a URL. All methods take names below that prefix, with "/" between folders.

    Every method raises NotPermitted (77) without access, TryAgain (75) if the store cannot be reached or is busy after
    all retries. With `conditional` False, `create` and `replace` write without conditions: for one writer only. A local
    folder is created unless it `must_exist`.
    """

    def __init__(self, url: str, *, must_exist: bool = False) -> None:
        scheme, mark, path = url.partition("://")
        self.url, self.conditional = f"{scheme}{mark}{path.rstrip('/')}" if mark else url.rstrip("/"), True
        self._obstore = _import_obstore()
        self._folder = _local_folder(url)
        if self._folder:
            _prepare_folder(self._folder, url, must_exist=must_exist)
        try:
            self._store = self._open()
        except (ValueError, self._obstore.exceptions.BaseError) as error:
            raise BadConfig(
                f"{url}: {_first_line(error)}", hint="check the URL, and the settings of its store in the environment"
            ) from None

    def _open(self) -> ObjectStore:
        from obstore.store import LocalStore, from_url

        if self._folder:
            return LocalStore(self._folder)
        split_url(self.url)  # refuses credentials and a missing bucket
        if self.url.startswith("s3:"):
            return from_url(self.url, client_options=_CLIENT, checksum_algorithm="SHA256")
        return from_url(self.url, client_options=_CLIENT)

    def read(self, name: str) -> tuple[bytes, Object] | None:
        """Return the content of a small object, with its version; None if there is none."""
        with self._translated(name):
            try:
                response = self._obstore.get(self._store, name)
            except FileNotFoundError:
                return None
            if response.meta["size"] > _MAX_SMALL:
                raise BadData(f"{self.url}/{name}: {response.meta['size']:,} bytes, expected fewer", hint="delete it")
            return bytes(response.bytes()), _object(name, response.meta)

    def stat(self, name: str) -> Object | None:
        """Return the size and version of an object; None if there is none."""
        with self._translated(name):
            try:
                return _object(name, self._obstore.head(self._store, name))
            except (FileNotFoundError, IsADirectoryError):
                return None

    def stream(self, name: str, pinned: Object | None = None) -> Iterator[memoryview]:
        """Yield the bytes of an object. Raises UpstreamChanged unless it is still the version `pinned`."""
        condition: Any = {"if_match": pinned.version.get("e_tag")} if pinned and pinned.version.get("e_tag") else {}
        try:
            with self._translated(name):
                response = self._obstore.get(self._store, name, options=condition)
                if pinned and response.meta["size"] != pinned.size:
                    raise _Refused("")
                yield from (memoryview(block) for block in response.stream(min_chunk_size=1 << 20))
        except _Refused:
            raise UpstreamChanged(
                f"{self.url}/{name}: the object changed after it was listed",
                hint="run the same command again when the object is complete",
            ) from None
        except FileNotFoundError:
            raise InputMissing(f"{self.url}/{name}: no such object", hint="check the URL") from None

    def has(self, name: str, size: int, sha256: str) -> bool:
        """Return True if an earlier `put` stored a file of this size and sha256. A local folder does not record it."""
        with self._translated(name):
            try:
                response = self._obstore.get(self._store, name, options={"head": True})
            except FileNotFoundError:
                return False
            return bool(response.meta["size"] == size and response.attributes.get("sha256") == sha256)

    def put(self, name: str, path: Path, sha256: str) -> None:
        """Upload a file, replacing what is there. S3 refuses bytes that do not have the hash that is sent along."""
        self._put(name, path, **({} if self._folder else {"attributes": {"sha256": sha256}}))
        stored = self.stat(name)
        if not stored or stored.size != path.stat().st_size:
            raise ProtocolBroken(f"{self.url}/{name}: not stored as it was sent", hint="run the same command again")

    def create(self, name: str, data: bytes) -> bool:
        """Write a small object and return True; False if it exists, maybe from this call after a lost answer."""
        if not self.conditional:
            if self.stat(name):
                return False
            return self._write(name, data, "overwrite")
        return self._write(name, data, "create")

    def replace(self, name: str, data: bytes, former: Object) -> bool:
        """Replace version `former` of a small object and return True; False if there is another version by now."""
        if not self.conditional:
            return self._write(name, data, "overwrite")
        if not self._folder:
            return self._write(name, data, former.version)
        with locks.lock(self._folder / _LOCK, wait=10, action="publish"):
            current = self.stat(name)
            return current is not None and current.tag == former.tag and self._write(name, data, "overwrite")

    def _write(self, name: str, data: bytes, mode: Any) -> bool:
        try:
            self._put(name, data, mode=mode, use_multipart=False)
        except _Refused:
            return False
        return True

    def _put(self, name: str, content: Path | bytes, **options: Any) -> None:
        try:
            with self._translated(name):
                self._obstore.put(self._store, name, content, chunk_size=_PART, **options)
        except FileNotFoundError:
            raise InputMissing(f"{self.url}: no such bucket", hint="check the URL, or create the bucket") from None

    def objects(self, prefix: str = "") -> Iterator[Object]:
        """Yield the objects below the folder `prefix`, by default all."""
        with self._translated(prefix):
            for batch in self._obstore.list(self._store, prefix.rstrip("/") or None):
                yield from (_object(meta["path"], meta) for meta in batch)

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below the folder `prefix`, sorted."""
        with self._translated(prefix):
            listed = self._obstore.list_with_delimiter(self._store, prefix)
            return sorted(path.rstrip("/").rpartition("/")[2] for path in listed["common_prefixes"])

    def delete(self, name: str) -> None:
        with self._translated(name), suppress(FileNotFoundError):
            self._obstore.delete(self._store, name)

    def problem(self) -> str:
        """Write a probe object and return the fault of the store: it ignores conditions or Range; "" if it has none."""
        name = f".inkstone-probe-{secrets.token_hex(8)}"
        try:
            self.create(name, b"first")
            if self.create(name, b"again"):
                return "overwrites an object that If-None-Match protects"
            written = self.read(name)
            if not written or not self.replace(name, b"second", written[1]):
                return "refuses If-Match for the version that it holds"
            if self.replace(name, b"third", written[1]):
                return "overwrites a version that If-Match does not name"
            with self._translated(name):
                if bytes(self._obstore.get_range(self._store, name, start=1, end=4)) != b"eco":
                    return "ignores Range"
        except _Unsupported as error:
            return f"cannot do what publishing needs: {error.message}"
        except ProtocolBroken:
            return "ignores Range"
        finally:
            with suppress(InkstoneError):
                self.delete(name)
        return ""

    def require_conditions(self, *, one_writer: bool) -> str:
        """Return a note if the store ignores conditions and there is only `one_writer`; otherwise raise BadConfig."""
        problem = self.problem()
        if problem and not one_writer:
            raise BadConfig(
                f"{self.url}: the store {problem}",
                hint="use another store; if no other process publishes there, --one-writer or INKSTONE_ONE_WRITER=1",
            )
        self.conditional = not problem
        return f"{self.url}: the store {problem}; only one process may publish there at a time" if problem else ""

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Turn errors of obstore into errors of this program; FileNotFoundError stays."""
        errors = self._obstore.exceptions
        where = f"{self.url}/{name}"
        try:
            yield
        except (errors.AlreadyExistsError, errors.PreconditionError, errors.NotModifiedError):
            raise _Refused(where) from None
        except (errors.PermissionDeniedError, errors.UnauthenticatedError):
            raise NotPermitted(
                f"{where}: access denied", hint="set credentials with access to the bucket in the environment"
            ) from None
        except (errors.NotSupportedError, NotImplementedError) as error:
            raise _Unsupported(_first_line(error)) from None
        except ValueError as error:  # a name such as a/../b
            raise BadConfig(f"{where}: {_first_line(error)}", hint="write the name as the store lists it") from None
        except errors.BaseError as error:
            raise _generic(where, str(error)) from None


def _generic(where: str, text: str) -> InkstoneError:
    """Return the error for an answer without an exception class of its own in obstore."""
    reason = " ".join(text.partition("Debug source")[0].split())
    status = re.search(r"status code: (\d{3})", reason)
    code = int(status[1]) if status else 0
    if "with invalid path" in reason:
        return BadData(f"{where}: {_cause(reason)}", hint="rename that object, or name another folder")
    if code == 501:
        return _Unsupported("not implemented (501)")
    if code == 404:
        return InputMissing(f"{where}: no such bucket", hint="check the URL, or create the bucket")
    if code == 409:
        return _Refused(where)
    if "NotPartial" in text or ("range" in reason.lower() and "partial" in text.lower()):
        return ProtocolBroken(f"{where}: the store ignores Range", hint="use another store")
    missing = "credential" in text.lower() or "169.254." in text
    if missing:
        return NotPermitted(f"{where}: no credentials", hint="set them in the environment, such as AWS_ACCESS_KEY_ID")
    cause = f"the server answered {code}" if code else _cause(reason)
    if 400 <= code < 500 and code != 429:
        return ProtocolBroken(f"{where}: {cause}", hint="check the URL and the endpoint in the environment")
    return TryAgain(f"{where}: {cause}", hint="run the same command again later")


def _cause(reason: str) -> str:
    """Return the cause in a message of obstore: its end. Its beginning repeats the request."""
    if reason.endswith("error sending request"):
        return "cannot be reached"
    return (reason.rpartition(" - ")[2] or reason)[:_MAX_REASON]


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:_MAX_REASON]


def _object(name: str, meta: Any) -> Object:
    version: Any = {field: meta[field] for field in ("e_tag", "version") if meta[field]}
    return Object(name, meta["size"], version)


def _local_folder(url: str) -> Path | None:
    """Return the folder that a URL or a path names; None for an object store. Raises BadConfig for another scheme."""
    if url.startswith("file://"):
        host, _, path = url.removeprefix("file://").partition("/")
        if host not in ("", "localhost"):
            raise BadConfig(f"{url}: a file URL names no host, got {host!r}", hint="file:///FOLDER with three slashes")
        return Path(f"/{path}")
    if is_url(url):
        return None
    if not url or "://" in url:
        raise BadConfig(
            f"{url.partition('://')[0]!r} is not a bucket: expected a URL or a folder",
            hint="s3://, gs://, az://, file:///FOLDER, or the path of a folder",
        )
    return Path(url).absolute()


def _prepare_folder(folder: Path, url: str, *, must_exist: bool) -> None:
    """Create the folder. Raises InputMissing if it `must_exist` and does not, BadConfig if it holds artifacts."""
    if must_exist and not folder.is_dir():
        raise InputMissing(f"{url}: no such folder", hint="check the path")
    folder.mkdir(parents=True, exist_ok=True)
    if any((shelf / "current").is_symlink() for kind in KINDS for shelf in folder.glob(f"{kind}/*")):
        raise BadConfig(
            f"{url}: a folder that stages write to, not a bucket",
            hint="name another folder; --artifacts takes this one",
        )


def _import_obstore() -> Any:
    import obstore  # an extra: only those who use a bucket need it
    import obstore.exceptions

    return obstore
