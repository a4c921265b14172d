"""The commands that copy artifacts to and from a bucket: push and pull."""

from __future__ import annotations

import click

from pipeline.commands.console import Command, Outcome, Settings
from pipeline.runtime.terminal import counted


@click.command(cls=Command)
@click.argument("reference", metavar="KIND/NAME[/KEY]")
@click.argument("url", metavar="URL")
@click.option(
    "--one-writer",
    is_flag=True,
    envvar="INKSTONE_ONE_WRITER",
    help="Accept a store that ignores conditions: no other process publishes there.",
)
def push(settings: Settings, reference: str, url: str, one_writer: bool) -> Outcome:
    """Copy an artifact to a bucket.

    URL is s3://BUCKET/PREFIX, gs://, az:// or a folder; credentials come from the environment. Readers see the
    artifact when all its files are there. It becomes the current generation there if it is the current one here.

    \b
    Example:
      inkstone push tokens/pile s3://bucket/store
    """
    from pipeline.store import artifact, remote
    from pipeline.store.bucket import Bucket
    from pipeline.store.generations import current_key

    kind, name, _ = remote.split_ref(reference)
    pushed = artifact.require_intact(artifact.find(settings.root, kind, reference))
    bucket = Bucket(url)
    if note := bucket.require_conditions(one_writer=one_writer):
        settings.progress.note(note)
    size = sum(record.size for record in pushed.manifest.files)
    with artifact.lease(pushed):
        is_current = current_key(pushed.path.parent) == pushed.manifest.key
        promote = is_current or not remote.remote_key(bucket, kind, name)
        with settings.progress.wait(f"copying {size:,} bytes to {bucket.url}"):
            result = remote.push(bucket, pushed.path, promote=promote)
    files = len(pushed.manifest.files)
    return Outcome(
        result,
        pushed.ref,
        pushed.path,
        counts={"files": files, "bytes": size},
        extra={"url": f"{bucket.url}/{pushed.ref}"},
        lines=[f"{result}: {bucket.url}/{pushed.ref} ({counted(files, 'files')}, {size:,} bytes)"],
    )


@click.command(cls=Command, short_help="Copy an artifact from a bucket, or list it.")
@click.argument("url", metavar="URL")
@click.argument("reference", metavar="[KIND/NAME[/KEY]]", default="")
def pull(settings: Settings, url: str, reference: str) -> Outcome:
    """Copy an artifact from a bucket, or list what is there.

    URL is s3://BUCKET/PREFIX, gs://, az:// or a folder. Every file is compared with the sha256 in the manifest. An
    interrupted copy resumes. Without KEY, the current generation there becomes the current one here. With URL alone,
    nothing is copied: all generations in the bucket are listed.

    \b
    Example:
      inkstone pull s3://bucket/store tokens/pile
    """
    from pipeline.store import artifact, remote
    from pipeline.store.bucket import Bucket
    from pipeline.store.generations import current_key, set_current

    bucket = Bucket(url, must_exist=True)
    if not reference:
        rows = remote.generations(bucket)
        lines = [f"{ref}{'  current' if is_current else ''}" for ref, is_current in rows]
        lines = lines or [f"no artifacts in {bucket.url} (the URL that `push` copies to, without KIND/NAME)"]
        return Outcome("unchanged", extra={"generations": [ref for ref, _ in rows]}, lines=lines, always=True)
    kind, name, key = remote.resolve_ref(bucket, reference)
    with settings.progress.wait(f"copying {kind}/{name}/{key} from {bucket.url}"):
        folder, result = remote.pull(bucket, settings.root, f"{kind}/{name}/{key}")
    if current_key(folder.parent) != key and (reference.count("/") == 1 or not current_key(folder.parent)):
        set_current(folder.parent, key)
    pulled = artifact.read(folder)
    files, size = pulled.manifest.files, sum(record.size for record in pulled.manifest.files)
    return Outcome(
        result,
        pulled.ref,
        pulled.path,
        pulled.manifest.counts,
        lines=[f"{result}: {pulled.ref} ({counted(len(files), 'files')}, {size:,} bytes, every sha256 compared)"],
    )
