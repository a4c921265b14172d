"""The catalogue: source names, URLs and paths resolve to files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import BadConfig, InputMissing
from pipeline.sources.catalogue import CATALOGUE, pile_shards, resolve_source
from pipeline.sources.walk import LeftOut

HUB_FOLDER = "datasets/monology/pile-uncopyrighted/resolve/main"


def test_every_catalogue_name_is_a_source_with_files() -> None:
    for name in CATALOGUE:
        source = resolve_source(name, shards="all" if name == "pile" else "", environment={})
        assert source.name == name
        if source.dataset:  # its files are listed by the hub
            assert (source.files, CATALOGUE[name].dataset) == ((), str(source.dataset))
            assert source.dataset.include == CATALOGUE[name].files
            continue
        assert source.files
        assert len({file.name for file in source.files}) == len(source.files)
        assert all(bool(file.local) != bool(file.urls) for file in source.files)
        assert all(url.isascii() and url.startswith("https://") for file in source.files for url in file.urls)


def test_sample_is_the_two_bundled_texts_without_the_conversations() -> None:
    files = resolve_source("sample", environment={}).files
    assert [file.name for file in files] == ["sample.jsonl.zst", "yanshan.txt"]
    assert all(file.local and file.local.is_file() for file in files)


def test_song_ci_has_23_files() -> None:
    files = resolve_source("song-ci", environment={}).files
    assert len(files) == 23
    assert files[0].name == "ci.song.0.json"
    assert files[-1].name == "ci.song.2019y.json"
    assert files[0].urls == (
        "https://raw.githubusercontent.com/chinese-poetry/chinese-poetry/HEAD/%E5%AE%8B%E8%AF%8D/ci.song.0.json",
    )


@pytest.mark.parametrize(
    ("shards", "expected"),
    [
        ("0", ["train/00.jsonl.zst"]),
        ("29", ["train/29.jsonl.zst"]),
        ("val", ["val.jsonl.zst"]),
        ("test,val", ["test.jsonl.zst", "val.jsonl.zst"]),
        ("0-2", ["train/00.jsonl.zst", "train/01.jsonl.zst", "train/02.jsonl.zst"]),
        ("7-7", ["train/07.jsonl.zst"]),
        (" 1 , val ", ["train/01.jsonl.zst", "val.jsonl.zst"]),
        ("1,0-2,1,val,val", ["train/01.jsonl.zst", "train/00.jsonl.zst", "train/02.jsonl.zst", "val.jsonl.zst"]),
    ],
)
def test_shards_are_numbers_ranges_and_splits_without_duplicates(shards: str, expected: list[str]) -> None:
    assert pile_shards(shards) == expected


def test_all_shards_are_30_train_shards_val_and_test() -> None:
    train = [f"train/{number:02d}.jsonl.zst" for number in range(30)]
    assert pile_shards("all") == [*train, "val.jsonl.zst", "test.jsonl.zst"]


@pytest.mark.parametrize("shards", ["", "30", "-1", "3-1", "0-30", "0-", "a", "0,,1", "0,", "val test", "0 1", "../x"])
def test_unknown_shard_raises_bad_config(shards: str) -> None:
    with pytest.raises(BadConfig) as caught:
        pile_shards(shards)
    assert caught.value.exit_code == 78


def test_pile_requires_a_selection_of_shards() -> None:
    with pytest.raises(BadConfig, match="over 300 GB"):
        resolve_source("pile", environment={})


def test_shards_option_is_only_for_the_pile() -> None:
    for reference in ("sample", "shuihu", "https://example.org/a.txt"):
        with pytest.raises(BadConfig, match="--shards is for the source pile"):
            resolve_source(reference, shards="0", environment={})


def test_pile_files_have_splits() -> None:
    files = resolve_source("pile", shards="0,val,test", environment={}).files
    assert [file.split for file in files] == ["train", "val", "test"]


def test_pile_urls_are_on_the_hub() -> None:
    (file,) = resolve_source("pile", shards="0", environment={}).files
    assert file.urls == (f"https://huggingface.co/{HUB_FOLDER}/train/00.jsonl.zst",)


def test_hf_endpoint_replaces_the_hub_and_mirror_replaces_both() -> None:
    environment = {"HF_ENDPOINT": "https://hf-mirror.com/"}
    (file,) = resolve_source("pile", shards="val", environment=environment).files
    assert file.urls[0] == f"https://hf-mirror.com/{HUB_FOLDER}/val.jsonl.zst"
    (file,) = resolve_source("pile", shards="val", mirror="http://127.0.0.1:8000/", environment=environment).files
    assert file.urls == (f"http://127.0.0.1:8000/{HUB_FOLDER}/val.jsonl.zst", "http://127.0.0.1:8000/val.jsonl.zst")


def test_hf_endpoint_may_name_the_hub_itself() -> None:
    (file,) = resolve_source("pile", shards="val", environment={"HF_ENDPOINT": "https://huggingface.co/"}).files
    assert file.urls == (f"https://huggingface.co/{HUB_FOLDER}/val.jsonl.zst",)


def test_mirror_may_serve_a_book_under_its_path_or_that_in_the_repository_or_at_its_root() -> None:
    (file,) = resolve_source("shuihu", mirror="http://127.0.0.1:8000/", environment={}).files
    top = "http://127.0.0.1:8000"
    assert file.urls == tuple(f"{top}/{path}raw_shuihu.txt" for path in ("colinwps/MoiraiLM/HEAD/data/", "data/", ""))


def test_token_is_only_for_the_pile_and_never_shown() -> None:
    environment = {"HF_TOKEN": "hf_secret"}
    pile = resolve_source("pile", shards="0", environment=environment)
    assert pile.files[0].token == "hf_secret"
    assert "hf_secret" not in repr(pile)
    for reference in ("shuihu", "song-ci", "https://example.org/a.txt"):
        assert not any(file.token for file in resolve_source(reference, environment=environment).files)


@pytest.mark.parametrize(
    ("url", "source", "file"),
    [
        ("https://example.org/data/xiyou.txt", "xiyou", "xiyou.txt"),
        ("http://example.org/a%20b.jsonl.zst?download=true#top", "a-b", "a b.jsonl.zst"),
        ("https://example.org/%E6%B0%B4%E6%B5%92.txt", "水浒", "水浒.txt"),
        ("https://example.org/x%2Fy.txt", "y", "y.txt"),
    ],
)
def test_url_is_a_source_of_one_file(url: str, source: str, file: str) -> None:
    resolved = resolve_source(url, environment={})
    assert resolved.name == source
    assert [(entry.name, entry.urls) for entry in resolved.files] == [(file, (url,))]


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org",
        "https://example.org/",
        "https://example.org/folder/",
        "https://example.org/..",
        "https://example.org/%2e%2e",
        "https://example.org/a%2F..",
        "https://example.org/.hidden",
        "https://example.org/a%00b.txt",
        "https://example.org/" + "a" * 300,
    ],
)
def test_url_without_a_file_name_raises_bad_config(url: str) -> None:
    with pytest.raises(BadConfig, match="must end in a file name") as caught:
        resolve_source(url, environment={})
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("reference", ["https://example.org/pile.txt", "song-ci.txt"])
def test_file_named_like_a_catalogue_source_gets_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("song-ci.txt").write_text("mine")
    assert resolve_source(reference, environment={}).name not in CATALOGUE


def test_local_file_is_a_source_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "水浒传.txt"
    path.write_text("回")
    source = resolve_source(str(path), environment={})
    assert source.name == "水浒传"
    assert [(file.name, file.local, file.urls) for file in source.files] == [("水浒传.txt", path, ())]


def test_folder_is_a_source_of_its_data_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl.zst", "deep/c.json", "deep/d.jpg", "notes.md", "e.txt.gz"):
        path = tmp_path / "books" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "books" / "folder.txt").mkdir()
    source = resolve_source(f"{tmp_path}/books/", environment={})
    assert source.name == "books"
    assert [file.name for file in source.files] == ["a.jsonl.zst", "b.txt", "deep/c.json", "e.txt.gz", "notes.md"]
    assert source.left_out == (LeftOut("deep/d.jpg", "an image"),)


def test_catalogue_name_wins_over_a_folder_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shuihu").mkdir()
    (tmp_path / "shuihu" / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert resolve_source("shuihu", environment={}).files[0].urls
    assert resolve_source("./shuihu", environment={}).files[0].local


def test_folder_without_data_and_missing_path_raise_input_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no file in this folder") as caught:
        resolve_source(str(tmp_path), environment={})
    assert caught.value.exit_code == 66
    for reference, hint in (
        *((str(tmp_path / "nowhere"), "check the path"), ("honglou", "pile, shuihu, song-ci, tang")),
        *(("shuihuu", r"did you mean shuihu\? sources: "), ("ftp://example.org/a.txt", "`download --list`")),
    ):
        with pytest.raises(InputMissing, match=hint):
            resolve_source(reference, environment={})


def test_empty_reference_is_not_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("private")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputMissing, BadConfig)):
        resolve_source("", environment={})
