"""Artifacts, the store and whole-or-absent files."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from alignment import artifacts, files
from alignment.artifacts import Artifact, Parent
from alignment.errors import UserError
from alignment.store import Reference, Store, parse_reference


def make(store: Store, step: str, print_: str, parents: dict[str, Artifact] | None = None) -> Artifact:
    folder = store.folder("solo", step, print_)
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"12345")
    named = {key: Parent(f"step:{key}", one.fingerprint, str(one.path)) for key, one in (parents or {}).items()}
    return artifacts.finish(Artifact(folder, "policy", "sft", step, print_, parents=named))


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = make(store, "base", "a" * 64)
    made = make(store, "sft", "b" * 64, {"model": base})
    again = artifacts.load(made.path)
    assert again == made
    assert again.parents["model"].fingerprint == "a" * 64
    assert again.files == {"weights.bin": files.digest_file(made.path / "weights.bin")}


def test_damage_is_named(tmp_path: Path) -> None:
    made = make(Store(tmp_path), "sft", "b" * 64)
    assert made.verify() == []
    (made.path / "weights.bin").write_bytes(b"12346")
    assert made.verify() == ["weights.bin"]


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "no finished artifact"), ("{", "artifact.json"), ('{"schema_version": 9}', "version 9")],
)
def test_what_is_no_whole_artifact_is_refused(tmp_path: Path, content: str | None, word: str) -> None:
    if content is not None:
        (tmp_path / artifacts.RECORD).write_text(content)
    with pytest.raises(UserError, match=word):
        artifacts.load(tmp_path)


def test_a_fingerprint_changes_with_everything_that_changes_the_result() -> None:
    base = ("sft", 1, {"lr": 0.1}, {"model": "a"}, {"x": "1"})
    changed = [
        ("rl", 1, {"lr": 0.1}, {"model": "a"}, {"x": "1"}),
        ("sft", 2, {"lr": 0.1}, {"model": "a"}, {"x": "1"}),
        ("sft", 1, {"lr": 0.2}, {"model": "a"}, {"x": "1"}),
        ("sft", 1, {"lr": 0.1}, {"model": "b"}, {"x": "1"}),
        ("sft", 1, {"lr": 0.1}, {"model": "a"}, {"x": "2"}),
    ]
    prints = {artifacts.fingerprint(*one) for one in [base, *changed]}
    assert len(prints) == len(changed) + 1
    assert artifacts.fingerprint(*base) == artifacts.fingerprint(*base)


def test_what_cannot_be_serialised_raises() -> None:
    with pytest.raises(TypeError):
        artifacts.fingerprint("sft", 1, {"lr": object()}, {}, {})
    with pytest.raises(ValueError, match="JSON compliant"):
        artifacts.fingerprint("sft", 1, {"lr": float("nan")}, {}, {})


def test_the_store_finds_by_fingerprint_and_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = make(store, "sft", "a" * 64)
    record = json.loads((first.path / artifacts.RECORD).read_text())
    (first.path / artifacts.RECORD).write_text(json.dumps({**record, "created": "2020-01-01T00:00:00Z"}))
    second = make(store, "sft", "b" * 64)
    assert store.find("b" * 64) == second
    assert store.find("b" * 63 + "c") is None, "eight equal digits are not the same fingerprint"
    assert store.latest("sft") == second
    unfinished = store.folder("solo", "rl", "c" * 64)
    unfinished.mkdir()
    assert [one.fingerprint for one in store.finished()] == ["a" * 64, "b" * 64]
    with pytest.raises(UserError, match="Known: sft"):
        store.latest("rl")


def test_the_newest_is_that_of_the_step_and_only_else_of_the_stage(tmp_path: Path) -> None:
    """Steps sft and rs are both of stage sft, and rs was made last."""
    store = Store(tmp_path)
    made = {}
    for place, name in enumerate(("sft", "first", "rs")):
        made[name] = make(store, name, f"{place}" * 64)
        record = json.loads((made[name].path / artifacts.RECORD).read_text())
        told = json.dumps({**record, "created": f"2020-01-01T00:00:0{place}Z"})
        (made[name].path / artifacts.RECORD).write_text(told)
    assert store.latest("sft").step == "sft"
    assert store.latest("rs").step == "rs"
    (made["sft"].path / artifacts.RECORD).unlink()
    assert store.latest("sft").step == "rs", "no step is called so: the newest of the stage"


def test_children_are_found_by_fingerprint(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = make(store, "base", "a" * 64)
    made = make(store, "sft", "b" * 64, {"model": base})
    assert store.children(base) == [made]
    assert store.children(made) == []


@pytest.mark.parametrize(
    ("spelling", "reference"),
    [
        ("step:sft", Reference("step", "sft")),
        ("run:runs/a=b/sft-12345678", Reference("run", "runs/a=b/sft-12345678")),
        ("dir:/a b/c:d", Reference("dir", "/a b/c:d")),
        ("hf:google/gemma-2-2b@abc", Reference("hf", "google/gemma-2-2b", "abc")),
        ("hf:google/gemma-2-2b", Reference("hf", "google/gemma-2-2b")),
        ("remote:127.0.0.1:8400", Reference("remote", "127.0.0.1:8400")),
        ("remote:https://judge.example:443", Reference("remote", "https://judge.example:443")),
        ("remote:[::1]:8400", Reference("remote", "[::1]:8400")),
    ],
)
def test_references_are_parsed_and_spelled_back(spelling: str, reference: Reference) -> None:
    assert parse_reference(spelling) == reference
    assert str(reference) == spelling


@pytest.mark.parametrize(
    "spelling",
    [
        "sft",
        "lates:sft",
        "latest:",
        "",
        "hf:gemma",
        "/a/b",
        "remote:here",
        "remote:a b:1",
        "remote:a:0",
        "remote:a:65536",
    ],
)
def test_what_is_no_reference_is_refused(spelling: str) -> None:
    with pytest.raises(UserError):
        parse_reference(spelling)


def test_what_is_served_is_what_its_server_says_wherever_it_stands() -> None:
    here, there = (artifacts.named("remote", f"{host}:8400", "b" * 64) for host in ("here", "there"))
    assert here.fingerprint == there.fingerprint == files.digest_json({"remote": "b" * 64})
    assert here.fingerprint != "b" * 64, "a result over a server is not one of the model here"
    with pytest.raises(UserError, match="remote:here:8400: a policy is needed"):
        here.need("policy")


def test_a_kind_that_is_not_wanted_is_refused_and_a_foreign_one_passes(tmp_path: Path) -> None:
    made = make(Store(tmp_path), "sft", "a" * 64)
    assert made.need("policy") is made
    with pytest.raises(UserError, match="a dataset is needed"):
        made.need("dataset")
    assert replace(made, kind="foreign").need("dataset")


def test_temporaries_are_removed_and_never_digested(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_text("x")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.partial").mkdir()
    (tmp_path / "b" / "whole").write_text("y")
    assert list(files.digest_folder(tmp_path)) == ["b/whole"]
    files.remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "whole"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record"
    files.write_atomic(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"


def _hold(folder: Path, seconds: float, ready: object, order: object) -> None:
    with files.exclusive(folder, on_wait=lambda holder: order.append(f"waited for {holder}")):  # type: ignore[attr-defined]
        ready.set()  # type: ignore[attr-defined]
        time.sleep(seconds)
        order.append("left")  # type: ignore[attr-defined]


def test_a_second_process_waits_and_is_told_for_whom(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        order, ready = manager.list(), manager.Event()
        holder = context.Process(target=_hold, args=(tmp_path / "a", 0.5, ready, order))
        holder.start()
        ready.wait()
        with files.exclusive(tmp_path / "a", on_wait=lambda who: order.append(who)):
            order.append("entered")
        holder.join()
        told, left, entered = list(order)
    assert told.startswith(f"process {holder.pid} on ")
    assert (left, entered) == ("left", "entered")


def test_need_space_refuses_what_would_not_fit(tmp_path: Path) -> None:
    files.need_space(tmp_path, 1)
    with pytest.raises(UserError, match="are needed"):
        files.need_space(tmp_path, 2**60)
