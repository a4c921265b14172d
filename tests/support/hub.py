"""Datasets on a local server that answers as the Hugging Face hub does: its API, its pages of files, its headers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.bad_server import Server, respond, strong_etag


@dataclass
class HubDataset:
    """A dataset of `server`; `publish` commits its files to a branch.

    Files of less than `large` bytes are listed without a sha256, as the hub lists files that are not in LFS.
    """

    server: Server
    repository: str
    large: int = 20
    page_size: int = 1000
    gated: str | bool = False
    commits: list[str] = field(default_factory=list)

    def publish(self, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Serve `files` as a new commit of `revision`, and return the commit."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits.append(digest)
        api = f"/api/datasets/{self.repository}"
        info: dict[str, Any] = {"id": self.repository, "sha": digest, "gated": self.gated, "siblings": []}
        self._answer(f"{api}/revision/{revision}", info)
        entries: list[dict[str, Any]] = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "data"}]
        entries += [self._entry(path, body) for path, body in files.items()]
        pages = [entries[start : start + self.page_size] for start in range(0, len(entries), self.page_size)]
        queries = ["recursive=true", *(f"recursive=true&cursor=page{n}%3D%3D" for n in range(1, len(pages)))]
        for number, (query, page) in enumerate(zip(queries, pages, strict=True)):
            following = queries[number + 1] if number + 1 < len(queries) else ""
            # The hub's links name the hub itself, also behind a mirror.
            link = f'<https://huggingface.co{api}/tree/{digest}?{following}>; rel="next"' if following else ""
            self._answer(f"{api}/tree/{digest}?{query}", page, Link=link)
        for path, body in files.items():
            self.server.files[self.path_of(path, digest)] = body
        return digest

    def path_of(self, path: str, commit: str = "") -> str:
        """Return the path of a file on the server, at the newest commit by default."""
        return f"/datasets/{self.repository}/resolve/{commit or self.commits[-1]}/{path}"

    def _entry(self, path: str, body: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": strong_etag(body).strip('"'), "size": len(body), "path": path}
        if len(body) >= self.large:
            entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        return entry

    def _answer(self, path: str, content: Any, **headers: str) -> None:
        self.server.answers[path] = respond(200, json.dumps(content).encode(), **headers)
