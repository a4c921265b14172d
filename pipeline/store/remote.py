"""Artifacts in a bucket: publish and fetch them, and the local mirror that a store in a bucket works in.

    <kind>/<name>/<key>/...             the files, under their final names
    <kind>/<name>/<key>/manifest.json   created last, if there is none: readers know only manifests
    <kind>/<name>/current               the key of the current generation, moved by compare-and-swap

There is no rename in a bucket. A publisher that is killed leaves files without a manifest, which no reader sees; as
the same key means the same bytes, another publisher reuses them.

With `--artifacts s3://bucket/prefix`, stages work in a local folder, the mirror. A reference is resolved in the bucket
and fetched before it is read; what a stage builds is published afterwards. `bucket.json` in the mirror names the
bucket, without credentials.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from urllib.parse import quote, urlsplit

import msgspec

from pipeline.errors import BadConfig, BadData, InputMissing, TryAgain
from pipeline.store import files, locks
from pipeline.store.bucket import Bucket
from pipeline.store.generations import RUN, current_key, generation_keys, read_run_info, set_current
from pipeline.store.manifest import KINDS, MANIFEST, FileRecord, Manifest, is_key, is_valid_name, read_manifest

MIRROR = "bucket.json"
CURRENT = "current"
ONE_WRITER = "INKSTONE_ONE_WRITER"  # environment variable
PULL = ".pull-"  # folder of an artifact that is being fetched; a killed fetch resumes in it
_ATTEMPTS = 8  # to move `current`, if other processes move it at the same time
_PUSH_AGAIN = "delete the manifest in the bucket, then push the artifact again"
_LONG = 24 * 3600.0  # seconds to wait for another process that fetches the same artifact


def push(bucket: Bucket, folder: Path, *, promote: bool) -> str:
    """Publish the artifact in `folder`; return "built", or "unchanged" if the bucket has it already.

    With `promote` it becomes the current generation there. Raises BadData if a file differs from the manifest, or if
    the bucket has other bytes under this key.
    """
    manifest, _ = read_manifest(folder)
    data = (folder / MANIFEST).read_bytes()
    result = "unchanged"
    if not _has_manifest(bucket, manifest.ref, data):
        _upload(bucket, folder, manifest)
        if bucket.create(f"{manifest.ref}/{MANIFEST}", data):
            result = "built"
        elif not _has_manifest(bucket, manifest.ref, data):
            raise TryAgain(f"{bucket.url}/{manifest.ref}: the manifest is not stored", hint="run the command again")
    if promote:
        _move_current(bucket, manifest)
    return result


def _has_manifest(bucket: Bucket, ref: str, data: bytes) -> bool:
    """Return True if the bucket has this manifest. Raises BadData if it has another one under the same key."""
    stored = bucket.read(f"{ref}/{MANIFEST}")
    if stored and stored[0] != data:
        raise BadData(
            f"{bucket.url}/{ref}: the bucket has other bytes under this key",
            hint="check both with `verify --deep`, or choose another prefix",
        )
    return stored is not None


def _upload(bucket: Bucket, folder: Path, manifest: Manifest) -> None:
    for record in manifest.files:
        path = folder / record.name
        if not path.is_file() or files.sha256_of(path) != record.sha256:
            raise BadData(f"{path}: not as it was published", hint="`verify --deep`, then run its stage again")
        if not bucket.has(f"{manifest.ref}/{record.name}", record.size, record.sha256):
            bucket.put(f"{manifest.ref}/{record.name}", path, record.sha256)
    if (folder / RUN).is_file():  # it differs between publishers, and decides no bytes: the first one counts
        bucket.create(f"{manifest.ref}/{RUN}", (folder / RUN).read_bytes())


def _move_current(bucket: Bucket, manifest: Manifest) -> None:
    """Point `current` in the bucket to this generation. Raises TryAgain if other processes keep moving it."""
    name, data = f"{manifest.kind}/{manifest.name}/{CURRENT}", f"{manifest.key}\n".encode()
    for _ in range(_ATTEMPTS):
        stored = bucket.read(name)
        if stored and stored[0] == data:
            return
        if bucket.replace(name, data, stored[1]) if stored else bucket.create(name, data):
            return
    raise TryAgain(f"{bucket.url}/{name}: other processes keep changing it", hint="run the same command again")


def remote_key(bucket: Bucket, kind: str, name: str) -> str:
    """Return the key of the current generation in the bucket; "" if there is none."""
    stored = bucket.read(f"{kind}/{name}/{CURRENT}")
    key = stored[0].decode(errors="replace").strip() if stored else ""
    if key and not is_key(key):
        raise BadData(f"{bucket.url}/{kind}/{name}/{CURRENT}: not a key: {key[:40]!r}", hint="push the artifact again")
    return key


def remote_names(bucket: Bucket, kind: str) -> list[str]:
    """Return the names of the artifacts of a kind in the bucket, sorted."""
    return [name for name in bucket.folders(kind) if is_valid_name(name)]


def generations(bucket: Bucket) -> list[tuple[str, bool]]:
    """Return each generation `kind/name/key` in the bucket, sorted, and whether it is the current one."""
    rows = []
    for kind in KINDS:
        for name in remote_names(bucket, kind):
            shelf, current = f"{kind}/{name}", remote_key(bucket, kind, name)
            keys = [key for key in bucket.folders(shelf) if bucket.stat(f"{shelf}/{key}/{MANIFEST}")]
            rows += [(f"{shelf}/{key}", key == current) for key in keys]
    return rows


def split_ref(reference: str) -> tuple[str, str, str]:
    """Divide `kind/name` or `kind/name/key` into its parts; the key is "" without one. Raises BadConfig."""
    kind, name, key = (*reference.split("/"), "", "")[:3]
    if kind not in KINDS or not is_valid_name(name) or reference.count("/") > 2 or (key and not is_key(key)):
        raise BadConfig(f"{reference!r} is not a KIND/NAME or KIND/NAME/KEY", hint=f"kinds: {', '.join(KINDS)}")
    return kind, name, key


def resolve_ref(bucket: Bucket, reference: str) -> tuple[str, str, str]:
    """Divide a reference as `split_ref` does; without a key, take that of the current generation in the bucket.

    Raises BadConfig for another form, InputMissing if there is none.
    """
    kind, name, key = split_ref(reference)
    key = key or remote_key(bucket, kind, name)
    if not key:
        names = ", ".join(remote_names(bucket, kind)) or "none"
        raise InputMissing(f"{bucket.url}: no {kind}/{name} there", hint=f"{kind} in the bucket: {names}")
    return kind, name, key


def pull(bucket: Bucket, root: Path, ref: str) -> tuple[Path, str]:
    """Fetch the generation `kind/name/key` below `root`; return its folder, and "built", or "unchanged" if it exists.

    Every file is compared with its sha256 in the manifest. Raises InputMissing if the bucket does not have it, BadData
    if a file differs, or if another artifact exists under the same key.
    """
    target = root / ref
    stored = bucket.read(f"{ref}/{MANIFEST}")
    if not stored:
        raise InputMissing(f"{bucket.url}/{ref}: no artifact there", hint="check the key, or `push` it first")
    with locks.lock(target.parent / f"{PULL}lock", wait=_LONG, action=f"pull {ref}"):
        if (target / MANIFEST).is_file():
            if (target / MANIFEST).read_bytes() == stored[0] and not _differences(target):
                return target, "unchanged"
            raise BadData(f"{target}: differs from {bucket.url}/{ref}", hint="delete that folder, then pull again")
        draft = target.with_name(f"{PULL}{target.name}")
        draft.mkdir(exist_ok=True)
        files.remove_temporaries(draft)
        _download(bucket, draft, ref, stored[0])
        files.publish_directory(draft, target)
    return target, "built"


def _differences(folder: Path) -> bool:
    return any(files.file_size(folder / record.name) != record.size for record in read_manifest(folder)[0].files)


def _download(bucket: Bucket, draft: Path, ref: str, data: bytes) -> None:
    """Fill `draft`, the manifest last. Files of an earlier attempt are kept if their sha256 is right."""
    with files.temporary_folder(draft / MANIFEST) as scratch:  # it is checked before a name in it is used
        files.write_file(scratch / MANIFEST, data)
        try:
            manifest, _ = read_manifest(scratch)
        except BadData as error:
            message = error.message.replace(str(scratch), f"{bucket.url}/{ref}")
            raise BadData(message, hint=_PUSH_AGAIN) from None
    if manifest.ref != ref:
        raise BadData(f"{bucket.url}/{ref}: its manifest is that of {manifest.ref}", hint="push the artifact again")
    files.require_space(draft, sum(record.size for record in manifest.files) - files.folder_size(draft))
    for record in manifest.files:
        _fetch(bucket, draft / record.name, record, ref)
    if run := bucket.read(f"{ref}/{RUN}"):
        files.write_file(draft / RUN, _renumbered(run[0], draft.parent))
    files.write_file(draft / MANIFEST, data)


def _fetch(bucket: Bucket, target: Path, record: FileRecord, ref: str) -> None:
    if files.file_size(target) == record.size and files.sha256_of(target) == record.sha256:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.new_file(target) as out:
        try:
            for block in bucket.stream(f"{ref}/{record.name}"):
                out.write(block)
                if out.size > record.size:
                    break
        except InputMissing as error:
            raise BadData(f"{error.message}, and its manifest lists it", hint=_PUSH_AGAIN) from None
        if (out.size, out.sha256) != (record.size, record.sha256):
            raise BadData(
                f"{bucket.url}/{ref}/{record.name}: differs from the sha256 in its manifest",
                hint=_PUSH_AGAIN,
            )


def _renumbered(run: bytes, shelf: Path) -> bytes:
    """Return a run.json with the number of the newest generation on this shelf. Invalid JSON counts as empty."""
    number = 1 + max((read_run_info(shelf / key).generation for key in generation_keys(shelf)), default=0)
    try:
        content = msgspec.json.decode(run, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # it decides no bytes
        content = {}
    return msgspec.json.format(msgspec.json.encode({**content, "generation": number}), indent=2)


# The mirror of a store in a bucket


def open_mirror(url: str) -> Path:
    """Return the local folder that mirrors the bucket, and create it: below $INKSTONE_CACHE, or the user's cache."""
    Bucket(url)  # refuses what is not a bucket, or holds credentials
    folder = os.environ.get("INKSTONE_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "")).netloc if url.startswith("s3:") else ""
    name = url.rstrip("/").replace("://", f"-{endpoint}-" if endpoint else "-", 1)
    root = Path(folder) / "inkstone" / quote(name, safe="")
    root.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.encode({"url": url.rstrip("/")})
    if not (root / MIRROR).is_file() or (root / MIRROR).read_bytes() != data:
        files.write_file(root / MIRROR, data)
    return root


class _Mirror(msgspec.Struct):
    url: str


def bucket_of(root: Path) -> Bucket | None:
    """Return the bucket that `root` mirrors, None if it is a store without a bucket."""
    try:
        return _open(msgspec.json.decode((root / MIRROR).read_bytes(), type=_Mirror).url)
    except (FileNotFoundError, NotADirectoryError):
        return None


@functools.lru_cache
def _open(url: str) -> Bucket:
    return Bucket(url)


def fetch(root: Path, kind: str, name: str, key: str = "") -> None:
    """Fetch an artifact into a mirror: the generation `key`, or the current one. Do nothing if there is none."""
    bucket = bucket_of(root)
    if not bucket or kind not in KINDS or not is_valid_name(name) or (key and not is_key(key)):
        return
    is_current = not key
    if key and (root / kind / name / key / MANIFEST).is_file():
        return
    key = key or remote_key(bucket, kind, name)
    ref = f"{kind}/{name}/{key}"
    if not key or (not is_current and not bucket.stat(f"{ref}/{MANIFEST}")):
        return
    target, _ = pull(bucket, root, ref)
    if is_current and current_key(target.parent) != key:
        set_current(target.parent, key)


def fetch_all(root: Path, kind: str) -> None:
    """Fetch the current generations of all artifacts of a kind into a mirror."""
    if bucket := bucket_of(root):
        for name in remote_names(bucket, kind):
            fetch(root, kind, name)


def require_name(root: Path, kind: str) -> None:
    """Raise BadConfig if `root` is a mirror: finding the newest artifact of a kind would need fetching all of them."""
    if bucket := bucket_of(root):
        names = ", ".join(remote_names(bucket, kind)) or "none yet"
        raise BadConfig(f"{bucket.url}: none of the {kind} is named", hint=f"name one of those in the bucket: {names}")


def require_conditions(root: Path) -> str:
    """Return a note if the bucket of a mirror ignores conditions and has one writer; raise BadConfig if it has more."""
    bucket = bucket_of(root)
    return bucket.require_conditions(one_writer=bool(os.environ.get(ONE_WRITER))) if bucket else ""


def publish(root: Path, folder: Path) -> str:
    """Publish an artifact that a stage built in a mirror; return "built", or "unchanged" if the bucket has it.

    In a store without a bucket, do nothing and return "built".
    """
    if not (bucket := bucket_of(root)):
        return "built"
    require_conditions(root)
    return push(bucket, folder, promote=current_key(folder.parent) == folder.name)
