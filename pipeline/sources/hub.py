"""The listing of a dataset on the Hugging Face hub: its files at one commit, with their sizes and sha256.

The listing that a download used is stored beside its files, in `.listing.json`. It is used until the user updates the
pins: later downloads fetch the same files at the same commit, and a complete dataset needs no request.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec
import requests

from pipeline.errors import BadConfig, InkstoneError, InputMissing, NotPermitted, ProtocolBroken, RemoteGone
from pipeline.runtime.progress import Progress
from pipeline.runtime.redaction import redact_url
from pipeline.sources import cache
from pipeline.sources.cache import RawFile
from pipeline.sources.catalogue import Source, SourceFile
from pipeline.sources.dataset import Dataset, DatasetFile, Listing, split_of
from pipeline.sources.http import Network
from pipeline.sources.small import fetch_small
from pipeline.store import files

_LISTING = ".listing.json"
_MAX_PAGES = 1000
_URLS = ("http://", "https://")
_Answer = TypeVar("_Answer")


class _Info(msgspec.Struct):
    """State of a dataset at a revision; `gated` is False, or how access is granted."""

    sha: str = ""
    gated: Any = False


class _Lfs(msgspec.Struct):
    oid: str = ""
    size: int | None = None


class _Entry(msgspec.Struct):
    type: str
    path: str
    size: int = 0
    lfs: _Lfs | None = None


def list_source(root: Path, source: Source, network: Network, progress: Progress, *, update: bool = False) -> Source:
    """Return `source` with its files. Only a dataset is listed; any other source has its files already.

    The stored listing is used unless `update`, or if it has none of the chosen files. Raises BadConfig if `raw/NAME`
    holds the files of another revision, unless `update`; and the errors of `fetch_listing`.
    """
    dataset = source.dataset
    if dataset is None:
        return source
    stored = None if update else _stored_listing(root, source.name)
    if stored and stored.repository == dataset.repository:
        if stored.revision != dataset.revision:
            raise BadConfig(
                f"{dataset}: raw/{source.name} holds the revision {stored.revision}, not {dataset.revision}",
                hint="run `download --update-lock` to replace its files, or download into another store (--artifacts)",
            )
        try:
            return _with_files(source, dataset, stored, dataset.select(stored))
        except InputMissing:  # the dataset may have such files by now
            pass
    listing = fetch_listing(dataset, network)
    selected = dataset.select(listing)
    progress.note(dataset.summary(listing, selected))
    return _with_files(source, dataset, listing, selected)


def store_listing(root: Path, source: Source) -> None:
    """Store the listing of a dataset beside its files, unless it is stored already."""
    if source.listing and _stored_listing(root, source.name) != source.listing:
        data = msgspec.json.format(msgspec.json.encode(source.listing, order="deterministic"), indent=1)
        files.write_file(cache.source_folder(root, source.name) / _LISTING, data)


def removed_names(source: Source, pins: dict[str, RawFile]) -> list[str]:
    """Return the pinned files that the source no longer has: of a listed dataset, or of a local folder."""
    if source.dataset and source.listing:
        names = {file.path for file in source.listing.files}
        return [name for name in pins if name not in names and source.dataset.is_chosen(name)]
    names = {file.name for file in source.files}
    return [name for name, pin in pins.items() if name not in names and not pin.origin.startswith(_URLS)]


def _stored_listing(root: Path, name: str) -> Listing | None:
    try:
        return msgspec.json.decode((cache.source_folder(root, name) / _LISTING).read_bytes(), type=Listing)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # only a copy: list again
        return None


def _with_files(source: Source, dataset: Dataset, listing: Listing, selected: list[DatasetFile]) -> Source:
    folder = f"{dataset.page}/resolve/{quote(listing.commit or listing.revision, safe='')}"
    source_files = tuple(
        SourceFile(
            file.path,
            (f"{folder}/{quote(file.path)}",),
            split=split_of(file.path),
            token=dataset.token,
            size=file.size,
            sha256=file.sha256,
            commit=listing.commit,
        )
        for file in selected
    )
    return dataclasses.replace(source, files=source_files, listing=listing)


# Requests


def fetch_listing(dataset: Dataset, network: Network) -> Listing:
    """Request the files of a dataset, all pages, at the commit that its revision has now.

    Raises RemoteGone if there is no such dataset or revision, NotPermitted if its terms must be accepted first,
    TryAgain if the server cannot be reached, ProtocolBroken for an answer that is not a listing.
    """
    api = f"{dataset.endpoint}/api/datasets/{dataset.repository}"
    revision = quote(dataset.revision, safe="")
    info, _ = _request(dataset, f"{api}/revision/{revision}", network, _Info)
    if info.gated and not dataset.token:
        raise _access_denied(dataset, "its owner asks users to accept terms first")
    commit = info.sha if re.fullmatch(r"[0-9a-f]{40}", info.sha) else ""
    entries = _pages(dataset, f"{api}/tree/{commit or revision}?recursive=true", network)
    return Listing(dataset.repository, dataset.revision, commit, tuple(map(_dataset_file, entries)))


def _pages(dataset: Dataset, url: str, network: Network) -> Iterator[_Entry]:
    """Yield the entries of a listing, following the Link headers.

    Of a link only the query is used, so that no page comes from another server.
    """
    for _ in range(_MAX_PAGES):
        entries, headers = _request(dataset, url, network, list[_Entry])
        yield from (entry for entry in entries if entry.type == "file")
        links = requests.utils.parse_header_links(headers.get("Link", ""))
        following = next((link["url"] for link in links if link.get("rel") == "next"), "")
        if not following:
            return
        url = urlunsplit(urlsplit(url)._replace(query=urlsplit(following).query))
    raise ProtocolBroken(f"{dataset}: the listing does not end after {_MAX_PAGES} pages", hint="check --mirror")


def _dataset_file(entry: _Entry) -> DatasetFile:
    if entry.lfs and re.fullmatch(r"[0-9a-f]{64}", entry.lfs.oid):
        return DatasetFile(entry.path, entry.size if entry.lfs.size is None else entry.lfs.size, entry.lfs.oid)
    return DatasetFile(entry.path, entry.size)


def _request(dataset: Dataset, url: str, network: Network, form: type[_Answer]) -> tuple[_Answer, Mapping[str, str]]:
    """Return the decoded answer of the API, and its headers."""
    response = fetch_small(url, network, token=dataset.token, refusal=lambda refused: _refusal(dataset, refused))
    try:
        return msgspec.json.decode(response.body, type=form), response.headers
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        shown_url, hint = redact_url(url.partition("?")[0]), "check that --mirror or HF_ENDPOINT has the hub's API"
        raise ProtocolBroken(f"{shown_url}: not an answer of the hub: {error}", hint=hint) from None


def _refusal(dataset: Dataset, response: requests.Response) -> InkstoneError | None:
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if code == "RevisionNotFound":
        return RemoteGone(
            f"{dataset}: the dataset has no revision {dataset.revision} ({status})",
            hint=f"see {dataset.page}/tree/main for its branches and tags, or leave out @{dataset.revision}",
        )
    if code == "RepoNotFound" or status in (404, 410):
        private = "" if dataset.token else "; if it is private, set HF_TOKEN"
        return RemoteGone(
            f"{dataset}: no such dataset on {dataset.endpoint} ({status})",
            hint=f"check the name on {dataset.endpoint}/datasets{private}",
        )
    return _access_denied(dataset, f"access denied ({status})") if status in (401, 403) else None


def _access_denied(dataset: Dataset, reason: str) -> NotPermitted:
    is_withheld = dataset.endpoint.startswith("http:") and not dataset.token
    note = " (it is sent only over https or to this machine)" if is_withheld else ""
    return NotPermitted(f"{dataset}: {reason}", hint=f"accept the terms on {dataset.page}, then set HF_TOKEN{note}")
