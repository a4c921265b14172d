"""Manifests from elsewhere: an odd one is refused with its fault, decides no path outside, and stops nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadData, InputMissing
from pipeline.maintenance import retention, status, verify
from pipeline.store import artifact
from pipeline.store.artifact import Artifact, StageOutput
from pipeline.store.generations import read_run_info
from pipeline.store.manifest import Identity, Input, Manifest, is_inside
from pipeline.tokens import split
from tests.conftest import Inkstone
from tests.pipeline.store.test_artifact import writes

SHA = "5" * 64


def publish(root: Path, kind: str = "corpora", name: str = "book", text: str = "一", *inputs: Input) -> Artifact:
    return artifact.build(root, Identity(kind, name, {"text": text}, inputs), writes(text)).artifact


def content_of(published: Artifact) -> Any:
    return json.loads(published.file("manifest.json").read_text())


def replace(published: Artifact, content: object) -> None:
    data = content if isinstance(content, str) else json.dumps(content)
    published.file("manifest.json").write_text(data)


def with_file(name: str, **changes: Any) -> dict[str, Any]:
    return {"files": [{"name": name, "size": 3, "sha256": SHA, **changes}]}


NESTED: Any = []
for _ in range(40):
    NESTED = [NESTED]

ODD: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "passwords"}, "unknown kind 'passwords'"),
    "kind of another shelf": ({"kind": "tokens"}, "it is that of tokens/book/"),
    "name": ({"name": "../../other"}, "invalid name '../../other'"),
    "name of another shelf": ({"name": "other"}, "it is that of corpora/other/"),
    "key": ({"key": "../current"}, "invalid key '../current'"),
    "key of another folder": ({"key": "0123456789abcdef"}, "it is that of corpora/book/0123456789abcdef"),
    "parent folder": (with_file("../../../secret"), "'../../../secret' is not a path inside"),
    "hidden parent folder": (with_file("a/../../b"), "'a/../../b' is not a path inside"),
    "absolute path": (with_file("/etc/passwd"), "'/etc/passwd' is not a path inside"),
    "no path": (with_file(""), "'' is not a path inside"),
    "NUL in a path": (with_file("a\0b"), r"'a\x00b' is not a path inside"),
    "line break in a path": (with_file("a\nb"), r"'a\nb' is not a path inside"),
    "file listed twice": ({"files": with_file("a")["files"] * 2}, "'a' is listed twice"),
    "negative size": (with_file("a", size=-1), "$.files[0].size"),
    "size as text": (with_file("a", size="3"), "$.files[0].size"),
    "size of 2**80": (with_file("a", size=1 << 80), "$.files[0].size"),
    "hash": (with_file("a", sha256="0" * 63 + "\n"), "$.files[0].sha256"),
    "count as text": ({"counts": {"documents": "many"}}, "$.counts.documents"),
    "count as truth": ({"counts": {"documents": True}}, "$.counts.documents"),
    "count as list": ({"counts": {"characters": [1]}}, "$.counts.characters"),
    "negative count": ({"counts": {"tokens": -1}}, "$.counts.tokens"),
    "dtype": ({"counts": {"dtype": "O"}}, "$.counts.dtype"),
    "sets": ({"counts": {"sets": {"a": "b"}}}, "$.counts.sets"),
    "counts": ({"counts": []}, "$.counts"),
    "ledger": ({"ledger": {"documents": 5}}, "$.ledger"),
    "dropped": ({"ledger": {"documents": {"in": 1, "out": 1, "dropped": {"bad": "x"}}}}, "$.ledger"),
    "options": ({"options": {"text_fields": 5}}, "$.options.text_fields"),
    "model": ({"options": {"model": [1]}}, "$.options.model"),
    "depth": ({"options": {"deep": NESTED}}, "nested more than 32 levels deep"),
    "inputs": ({"inputs": [{"role": 1, "name": "a", "digest": "b"}]}, "$.inputs[0].role"),
    "schema": ({"schema": 0}, "$.schema"),
}
each_odd = pytest.mark.parametrize(("changes", "message"), ODD.values(), ids=ODD.keys())


@each_odd
def test_odd_manifest_is_refused_with_its_fault(root: Path, changes: dict[str, Any], message: str) -> None:
    published = publish(root)
    replace(published, content_of(published) | changes)
    with pytest.raises(BadData) as caught:
        artifact.read(published.path)
    assert message in caught.value.message
    assert caught.value.message.startswith(str(published.path / "manifest.json"))
    assert artifact.build(root, Identity("corpora", "book", {"text": "一"}, ()), writes("一")).result == "built"


@each_odd
def test_odd_manifest_is_one_line_and_stops_nothing_else(root: Path, changes: dict[str, Any], message: str) -> None:
    odd, whole = publish(root), publish(root, name="whole")
    outdated = publish(root, name="other", text="旧")
    newest = publish(root, name="other", text="新")
    replace(odd, content_of(odd) | changes)
    rows = {row.ref: row for row in status.status(root)}
    assert {ref: row.state for ref, row in rows.items()} == {
        odd.ref: "damaged",
        whole.ref: "current",
        newest.ref: "current",
    }
    assert message in rows[odd.ref].summary
    problems = {ref: found for ref, found in verify.verify(root) if found}
    assert list(problems) == [odd.ref]
    assert len(problems[odd.ref]) == 1
    assert message in problems[odd.ref][0]
    pruned = retention.prune(root, keep=1)
    assert [row.ref for row in pruned if row.removed] == [outdated.ref]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"schema": 1, "options": ' + '{"a":' * 100_000, "null", "5", "[]"])
def test_manifest_of_another_form_is_refused(root: Path, content: str) -> None:
    published = publish(root)
    replace(published, content)
    with pytest.raises(BadData, match="not a manifest"):
        artifact.read(published.path)


def test_large_manifest_is_not_read(root: Path) -> None:
    published = publish(root)
    with published.file("manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # of which the disk holds nothing
    with pytest.raises(BadData, match="more than 268,435,456 bytes"):
        artifact.read(published.path)


@pytest.mark.parametrize("values", [{"counts": {"new": {"a": 1}, "share": 0.5}}, {"options": {"new": [None, 1.5]}}])
def test_values_of_another_version_are_accepted(root: Path, values: dict[str, Any]) -> None:
    published = publish(root)
    replace(published, content_of(published) | values)
    assert artifact.read(published.path).manifest.key == published.manifest.key


def test_copy_under_a_name_of_its_own_is_read(root: Path, tmp_path: Path) -> None:
    published = publish(root)
    for folder in ("copy", f"backup/{published.manifest.key}", "runs/mine/model", f"store/{published.ref}"):
        copied = shutil.copytree(published.path, tmp_path / folder)
        assert artifact.read(copied).digest == published.digest
    assert artifact.read(published.path.parent / "current").digest == published.digest


def test_generation_copied_to_another_shelf_is_refused_and_built_there(root: Path) -> None:
    published = publish(root)
    shutil.copytree(published.path.parent, published.path.parents[1] / "copied", symlinks=True)
    with pytest.raises(BadData, match=f"it is that of {published.ref}, expected corpora/copied/"):
        artifact.find(root, "corpora", "copied")
    assert publish(root, name="copied").ref == f"corpora/copied/{published.manifest.key}"


def test_accents_that_a_file_system_decomposes_are_the_same_name(root: Path) -> None:
    published = publish(root, name="\u00e9tude")
    decomposed = published.path.parent.rename(root / "corpora" / "e\u0301tude")
    assert artifact.read(decomposed / published.manifest.key).ref == published.ref


def test_link_out_of_the_store_is_not_followed(root: Path, tmp_path: Path) -> None:
    published = publish(root)
    elsewhere = publish(tmp_path / "elsewhere", "corpora", "secret", "二")
    link = published.path.parent / "current"
    link.unlink()
    link.symlink_to(elsewhere.path)
    (row,) = status.status(root)
    assert (row.ref, row.state) == (f"corpora/book/{elsewhere.manifest.key}", "damaged")
    assert row.summary.endswith("no artifact here")


@pytest.mark.parametrize("ref", ["corpora/book/../../x", "/etc/passwd", "corpora/../0123456789abcdef", "", "tokens/a"])
def test_input_that_is_not_a_generation_is_not_read(root: Path, ref: str) -> None:
    with pytest.raises(BadData, match="not the kind/name/key"):
        artifact.read_ref(root, ref)


def test_input_is_read_by_its_reference(root: Path) -> None:
    published = publish(root)
    assert artifact.read_ref(root, published.ref).digest == published.digest
    with pytest.raises(InputMissing):
        artifact.read_ref(root, "corpora/book/0123456789abcdef")


@pytest.mark.parametrize(
    ("name", "inside"),
    [("a", True), ("checkpoints/step-1/state.json", True), ("第一回.txt", True), ("a..b", True), ("...", True)]
    + [(name, False) for name in ("", ".", "..", "/a", "a/", "a//b", "a/./b", "a/..", "../a", "a\0", "\n", "\x85")],
)
def test_paths_inside_a_folder(name: str, inside: bool) -> None:
    assert is_inside(name) == inside


def test_what_a_stage_could_not_read_back_is_not_published(root: Path) -> None:
    def write(draft: Path) -> StageOutput:
        (draft / "a").write_text("a")
        return StageOutput({"documents": -1})

    with pytest.raises(BadData, match="documents"):
        artifact.build(root, Identity("corpora", "book", {}, ()), write)
    assert not list((root / "corpora" / "book").glob("[!.]*"))


def test_missing_or_odd_values_are_named(root: Path) -> None:
    manifest: Manifest = publish(root).manifest
    with pytest.raises(BadData, match="option stage: missing"):
        manifest.option("stage", int)
    with pytest.raises(BadData, match="option text: Expected `int`"):
        manifest.option("text", int)
    assert manifest.option("text", str) == "一"
    with pytest.raises(BadData, match="no count tokens"):
        manifest.require_counts("documents", "tokens")
    assert manifest.require_counts("documents") == {"documents": 1}


@pytest.mark.parametrize(
    "content", ['{"generation": -1}', '{"generation": 1e9}', "[" * 100_000, '{"generation": 1' + "0" * 30 + "}"]
)
def test_odd_run_info_counts_as_lost(root: Path, content: str) -> None:
    published = publish(root)
    published.file("run.json").write_text(content)
    assert read_run_info(published.path).generation == 0
    assert publish(root, text="二").ref in [row.ref for row in status.status(root)]


# Other files of a store


def a_torn_record(shelf: Path) -> None:
    (shelf / "rolled-back").write_text("{")


def a_current_that_is_a_file(shelf: Path) -> None:
    (shelf / "current").unlink()
    (shelf / "current").write_text("")


def a_current_that_links_to_itself(shelf: Path) -> None:
    (shelf / "current").unlink()
    (shelf / "current").symlink_to("current")


def a_manifest_that_links_to_itself(shelf: Path) -> None:
    manifest = shelf.resolve() / "current" / "manifest.json"
    manifest.unlink()
    manifest.symlink_to("manifest.json")


@pytest.mark.parametrize(
    "make",
    [a_torn_record, a_current_that_is_a_file, a_current_that_links_to_itself, a_manifest_that_links_to_itself],
)
def test_odd_shelf_is_one_line_of_prune_and_stops_nothing_else(root: Path, make: Callable[[Path], None]) -> None:
    odd = publish(root).path.parent
    make(odd)
    outdated = publish(root, name="other", text="旧")
    publish(root, name="other", text="新")
    rows = retention.prune(root, keep=1)
    assert [row.ref for row in rows if row.removed] == [outdated.ref]
    assert [row.why for row in rows if row.ref.startswith("corpora/book")] != []
    assert len(status.status(root)) == 2
    assert [*verify.verify(root)]


def test_inputs_of_an_odd_run_are_kept_and_nothing_else(root: Path) -> None:
    used, unused = publish(root, name="used", text="旧"), publish(root, name="unused", text="旧")
    for name in ("used", "unused"):
        publish(root, name=name, text="新")
    run = publish(root, "runs", "odd", "一", used.as_input("tokens"))
    replace(run, content_of(run) | {"counts": {"steps": "many"}})
    removed = [row.ref for row in retention.prune(root, keep=1) if row.removed]
    assert removed == [unused.ref]


@pytest.mark.parametrize("result", ['{"seconds": 1e300}', '{"seconds": "x"}', "[" * 100_000])
def test_odd_result_of_a_run_is_not_shown(root: Path, result: str) -> None:
    def write(draft: Path) -> StageOutput:
        (draft / "result.json").write_text(result)
        return StageOutput({"steps": 5})

    artifact.build(root, Identity("runs", "book", {}, ()), write)
    assert [(row.state, row.summary) for row in status.status(root)] == [("current", "5 steps")]


def test_verify_of_one_artifact_ignores_an_odd_one(root: Path, inkstone: Inkstone) -> None:
    odd = publish(root)
    publish(root, name="whole")
    replace(odd, content_of(odd) | {"kind": "passwords"})
    assert inkstone("verify", "corpora/whole")["counts"] == {"checked": 1}


@pytest.mark.parametrize("options", [{"split": 5}, {"split": {"mode": 1}}, {"val_fraction": "x"}, {"val_fraction": -1}])
def test_odd_split_of_tokens_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(BadData, match="split in the manifest"):
        split.rule_of(options)
