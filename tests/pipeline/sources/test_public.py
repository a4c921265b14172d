"""Public sources of the catalogue: fetched from servers shaped like GitHub, and from clones of its repositories."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.commands.downloads import list_outcome
from pipeline.errors import BadConfig, InputMissing
from pipeline.runtime.progress import SilentProgress
from pipeline.sources import cache
from pipeline.sources.catalogue import CATALOGUE, Source, resolve_source
from pipeline.sources.download import DownloadResult, download
from pipeline.sources.inputs import resolve_inputs
from tests.conftest import Inkstone
from tests.support import bad_server
from tests.support.bad_server import Server
from tests.support.notes import Notes

POETRY = "chinese-poetry/chinese-poetry"


@pytest.fixture
def server() -> Iterator[Server]:
    with bad_server.running_server() as running:
        yield running


def poem(path: str) -> bytes:
    """Return a file of chinese-poetry with one poem, whose text no other path has."""
    lines = ["白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"]
    return json.dumps([{"title": path, "author": "王之渙", "paragraphs": lines}], ensure_ascii=False).encode()


def serve_github(server: Server, repository: str, paths: tuple[str, ...]) -> None:
    server.files.update({quote(f"/{repository}/HEAD/{path}"): poem(path) for path in paths})


def write_files(folder: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar_gz(contents: Mapping[str, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return output.getvalue()


def fetch(root: Path, source: Source) -> tuple[DownloadResult, list[str]]:
    progress = Notes()
    return download(root, source, progress), progress.lines


PROSE = {
    "古文原文/史记/本纪/text.txt": "黄帝者，少典之子，姓公孙，名曰轩辕。".encode(),
    "古文原文/论语/学而/text.txt": "子曰：学而时习之，不亦说乎？".encode(),
    "双语数据/论语/学而/source.txt": "有朋自远方来，不亦乐乎？".encode(),
    "双语数据/论语/学而/target.txt": "有朋友从远方来，不也快乐吗？".encode(),
    "README.md": "古文与现代汉语的平行语料。".encode(),
}


@pytest.mark.parametrize(
    ("name", "count", "paths"),
    [
        ("tang", 58, ("全唐诗/poet.tang.0.json", "全唐诗/poet.tang.57000.json")),
        ("song-shi", 255, ("全唐诗/poet.song.0.json", "全唐诗/poet.song.254000.json")),
        ("yuanqu", 1, ("元曲/yuanqu.json",)),
        ("classics", 35, ("四书五经/mengzi.json", "论语/lunyu.json", "五代诗词/huajianji/huajianji-x-juan.json")),
        ("poetry", 1272, ("全唐诗/poet.tang.0.json", "宋词/ci.song.2019y.json", "御定全唐詩/json/042.json")),
    ],
)
def test_sources_of_chinese_poetry_have_exact_paths(name: str, count: int, paths: tuple[str, ...]) -> None:
    entry = CATALOGUE[name]
    assert len(entry.paths()) == len(set(entry.paths())) == count
    assert set(paths) <= set(entry.paths())
    assert not any(word in path for path in entry.paths() for word in ("author", "error/", "rank/", "simplified"))


def test_every_source_states_its_licence_size_and_contents() -> None:
    assert all(entry.what and entry.licence and entry.bytes > 0 for entry in CATALOGUE.values())


@pytest.mark.parametrize("name", ["classics", "poetry"])
def test_source_of_many_files_is_fetched_with_one_note_and_few_writes(
    root: Path, server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    write = cache.write_lock_file

    def counted_write(root: Path, source: str, pinned: dict[str, cache.RawFile]) -> None:
        writes.append(len(pinned))
        write(root, source, pinned)

    monkeypatch.setattr(cache, "write_lock_file", counted_write)
    monkeypatch.setattr(cache, "_WRITE_SECONDS", 3600)
    paths = CATALOGUE[name].paths()[-40:]
    serve_github(server, POETRY, CATALOGUE[name].paths())
    source = resolve_source(name, mirror=server.url, environment={})
    source = Source(name, source.files[-40:])  # a thousand files take long
    result, notes = fetch(root, source)
    assert (result.fetched, result.names) == (len(paths), tuple(paths))
    assert notes == [f"{len(paths)} files: the server publishes no hashes; pinned the sha256 of this download"]
    assert writes == [1, len(paths)]
    assert not list((root / "raw" / name).rglob("*.part.json"))
    server.log.clear()
    assert fetch(root, source)[0].result == "unchanged"
    assert not server.log


def test_files_fetched_before_an_error_are_pinned_although_the_lock_file_is_written_seldom(
    root: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_WRITE_SECONDS", 3600)
    paths = CATALOGUE["classics"].paths()
    serve_github(server, POETRY, paths)
    source = resolve_source("classics", mirror=server.url, environment={})
    last = quote(f"/{POETRY}/HEAD/{paths[-1]}")
    server.scripts[last] = [bad_server.respond(403)]
    with pytest.raises(Exception, match="403"):
        download(root, source, SilentProgress(), jobs=1)
    assert list(cache.read_lock_file(root, "classics")) == sorted(paths[:-1])


def test_mirror_may_be_a_server_in_a_clone(root: Path, server: Server) -> None:
    server.files.update({quote(f"/{path}"): poem(path) for path in CATALOGUE["classics"].paths()})
    result, _ = fetch(root, resolve_source("classics", mirror=server.url, environment={}))
    assert result.fetched == 35


@pytest.mark.parametrize("top", ["", "chinese-poetry", POETRY])
def test_mirror_may_be_a_clone_or_a_folder_of_clones(root: Path, tmp_path: Path, top: str) -> None:
    paths = CATALOGUE["classics"].paths()
    mirror = write_files(tmp_path / "mirror", {f"{top}/{path}".lstrip("/"): poem(path) for path in paths})
    result, notes = fetch(root, resolve_source("classics", mirror=str(mirror), environment={}))
    assert (result.names, notes) == (paths, [])
    assert (root / "raw" / "classics" / "论语" / "lunyu.json").read_bytes() == poem("论语/lunyu.json")


def test_files_have_one_order_from_a_server_and_from_a_clone(root: Path, tmp_path: Path, server: Server) -> None:
    paths = CATALOGUE["song-ci"].paths()
    serve_github(server, POETRY, paths)
    mirror = write_files(tmp_path / "mirror", {path: poem(path) for path in paths})
    fetch(root, resolve_source("song-ci", mirror=server.url, environment={}))
    fetch(tmp_path / "second", resolve_source("song-ci", mirror=f"file://{mirror}", environment={}))
    names = [
        [entry.name for entry in resolve_inputs(store, "song-ci", corpora=False)]
        for store in (root, tmp_path / "second")
    ]
    assert names[0] == names[1]


def test_incomplete_clone_and_missing_folder_are_named(tmp_path: Path) -> None:
    clone = write_files(tmp_path / "clone", {"论语/lunyu.json": b"[]"})
    with pytest.raises(InputMissing, match=r"no file 四书五经/daxue\.json"):
        resolve_source("classics", mirror=str(clone), environment={})
    with pytest.raises(InputMissing, match="no file Classical-Modern/古文原文"):
        resolve_source("classical-prose", mirror=str(clone), environment={})
    for name in ("classics", "pile"):
        with pytest.raises(BadConfig, match="neither a URL nor a folder"):
            resolve_source(name, shards="val" if name == "pile" else "", mirror="nowhere", environment={})
    with pytest.raises(BadConfig, match="the hub's mirror is a URL"):
        resolve_source("hf:owner/name", mirror=str(clone), environment={})


def test_archive_is_cleaned_without_the_members_that_are_left_out(
    root: Path, server: Server, inkstone: Inkstone
) -> None:
    archive = tar_gz({f"Classical-Modern-HEAD/{name}": content for name, content in PROSE.items()})
    server.files["/NiuTrans/Classical-Modern/tar.gz/HEAD"] = archive
    result, _ = fetch(root, resolve_source("classical-prose", mirror=server.url, environment={}))
    assert result.names == ("Classical-Modern.tar.gz",)
    output = inkstone("clean", "classical-prose")
    assert output["ledger"]["documents"] == {"in": 2, "dropped": {}, "out": 2}
    assert "3 not included" in output["stderr"]


def test_clone_gives_the_files_that_are_read_of_the_archive(root: Path, tmp_path: Path, inkstone: Inkstone) -> None:
    clone = write_files(tmp_path / "Classical-Modern", PROSE)
    inkstone("download", "classical-prose", "--mirror", clone)
    assert sorted(cache.read_lock_file(root, "classical-prose")) == [
        "Classical-Modern/古文原文/史记/本纪/text.txt",
        "Classical-Modern/古文原文/论语/学而/text.txt",
    ]
    assert inkstone("clean", "classical-prose")["counts"]["documents"] == 2


def test_kanripo_core_is_one_archive_for_each_text(root: Path, server: Server) -> None:
    for repository in CATALOGUE["kanripo-core"].archives:
        name = repository.rpartition("/")[2]
        server.files[f"/{repository}/tar.gz/HEAD"] = tar_gz({f"{name}-HEAD/{name}_001.txt": "學而時習之。".encode()})
    result, _ = fetch(root, resolve_source("kanripo-core", mirror=server.url, environment={}))
    assert result.fetched == 5
    assert {entry.members for entry in resolve_inputs(root, "kanripo-core", corpora=False)} == {"*/KR*_*.txt"}


def test_folder_that_had_the_name_before_the_catalogue_is_not_mixed_with_it(root: Path, tmp_path: Path) -> None:
    clone = write_files(tmp_path / "mirror", {path: poem(path) for path in CATALOGUE["yuanqu"].paths()})
    write_files(root / "raw" / "yuanqu", {".origin": b"/home/someone/yuanqu.txt", "sources.lock.json": b"{}"})
    with pytest.raises(BadConfig, match=r"holds the files of /home/someone/yuanqu\.txt"):
        fetch(root, resolve_source("yuanqu", mirror=str(clone), environment={}))


def test_list_prints_every_source_with_size_licence_and_contents(inkstone: Inkstone) -> None:
    sources = {source["name"]: source for source in inkstone("download", "--list")["sources"]}
    assert sources.keys() == CATALOGUE.keys()
    assert sources["yuanqu"]["files"] == ["元曲/yuanqu.json"]
    assert sources["tang"]["licence"] == "MIT"
    assert len(sources["poetry"]["files"]) == 1272
    assert inkstone("download", code=2)


def test_list_aligns_its_columns_and_claims_no_licence_that_a_publisher_does_not_state() -> None:
    rows = [line for line in list_outcome().lines if not line.startswith(" ")]
    columns = {line.index(entry.what) for line, entry in zip(rows, CATALOGUE.values(), strict=True)}
    assert len(columns) == 1
    for name in ("minimind-chat", "minimind-preferences"):
        assert CATALOGUE[name].licence == "see the dataset's page"


def test_folder_with_lives_of_poets_and_an_empty_file_is_cleaned_and_names_both(
    tmp_path: Path, inkstone: Inkstone
) -> None:
    folder = write_files(
        tmp_path / "repository",
        {
            "authors.tang.json": '[{"name": "王之渙", "desc": "并州人。", "id": "1"}]'.encode(),
            "poet.tang.0.json": poem("登鸛雀樓"),
            "good.txt": "话说天下大势，分久必合，合久必分。".encode(),
            "狮/text.txt": b"",
        },
    )
    output = inkstone("clean", folder)
    assert output["counts"]["documents"] == 2
    assert output["left_out"] == [
        {"name": "authors.tang.json", "reason": "no text field"},
        {"name": "狮/text.txt", "reason": "empty"},
    ]
