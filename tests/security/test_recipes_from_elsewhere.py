"""A recipe from anybody reads what lies beside it, in bounded time and memory, and nothing else."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment import run
from alignment.command_line import Request
from alignment.data import readers, recipe
from alignment.errors import DataError, UserError
from alignment.stages import data


def written(folder: Path, **changes: Any) -> Path:
    """A recipe of one file, but for the changes."""
    (folder / "here").mkdir(parents=True)
    (folder / "private.jsonl").write_text('{"q": "key", "a": "value"}\n')
    (folder / "here" / "rows.jsonl").write_text('{"q": "Who?", "a": "Ben."}\n')
    source = {"name": "s", "licence": "MIT", "format": "prompt_completion", "expected_rows": None}
    source |= {"columns": {"prompt": "q", "completion": "a"}}
    source |= changes.pop("source", {"files": {"paths": ["rows.jsonl"], "reader": "jsonl"}})
    values = {"kind": "conversations", "sources": [source], "splits": {"train": 1.0, "valid": 0.0, "test": 0.0}}
    path = folder / "here" / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | {"seed": 0, "max_dropped": 1.0, "root": None} | changes))
    return path


def files_of(path: Path, *overrides: tuple[str, str]) -> list[Path]:
    """What the stage would read."""
    _, _, values = run._checked(Request(stage="data", overrides=[("recipe", str(path)), *overrides]))
    return data.sources(data.Settings.parse(values, "stage=data"))[:-1]


def files(*paths: str) -> dict[str, Any]:
    return {"files": {"paths": list(paths), "reader": "jsonl"}}


def test_what_lies_beside_it_is_read(tmp_path: Path) -> None:
    assert files_of(written(tmp_path)) == [tmp_path / "here" / "rows.jsonl"]


@pytest.mark.parametrize(
    "named",
    ["../private.jsonl", "{}/private.jsonl", "sub/../../private.jsonl", "../*.jsonl", "../here/../private.jsonl"],
)
def test_paths_do_not_lead_out(tmp_path: Path, named: str) -> None:
    with pytest.raises(UserError, match="lies outside"):
        files_of(written(tmp_path, source=files(named.format(tmp_path))))


@pytest.mark.parametrize("named", ["link.jsonl", "li*.jsonl", "folder/private.jsonl", "folder/*.jsonl"])
def test_links_do_not_lead_out(tmp_path: Path, named: str) -> None:
    path = written(tmp_path, source=files(named))
    (path.parent / "link.jsonl").symlink_to("../private.jsonl")
    (path.parent / "folder").symlink_to("..")
    with pytest.raises(UserError, match=r"outside|leads out"):
        files_of(path)


@pytest.mark.parametrize("root", ["..", "/", "sub/../..", 3, ["."]])
def test_its_own_root_does_not_lead_out(tmp_path: Path, root: Any) -> None:
    path = written(tmp_path, source=files("private.jsonl"), root=root)
    with pytest.raises(UserError, match="root="):
        files_of(path)


def test_who_runs_it_may_say_another_root(tmp_path: Path) -> None:
    path = written(tmp_path, source=files("private.jsonl"))
    assert files_of(path, ("recipe.root", str(tmp_path))) == [tmp_path / "private.jsonl"]


def test_a_repository_that_is_a_directory_here_lies_below_the_root(tmp_path: Path) -> None:
    hub = {"hub": {"repository": str(tmp_path / "private"), "revision": "main", "subset": None, "split": "train"}}
    (tmp_path / "private").mkdir()
    path = written(tmp_path, source=hub)
    with pytest.raises(UserError, match="lies outside"):
        files_of(path)
    assert files_of(path, ("recipe.root", str(tmp_path))) == []


BOMBS = {
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "itself": "a: &a\n  b: *a\n",
    "brackets": "a: " + "[" * 100_000,
    "digits": "a: " + "9" * 100_000,
    "object": "a: !!python/object/apply:os.system ['true']\n",
    "date": "a: 2020-13-45\n",
    "key": "? [a, b]\n: c\n",
    "zero": 'a: "\\0"\n',
    "half": 'a: "\\ud800"\n',
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_is_plain_and_bounded(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(BOMBS[bomb])
    began = time.monotonic()
    with pytest.raises(DataError, match="is not YAML"):
        recipe.read_yaml(path)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("reader", ["json", "text", "csv", "jsonl"])
def test_a_small_archive_of_endless_text_is_refused(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LONGEST_FILE", 1 << 16)
    monkeypatch.setattr(readers, "LONGEST_LINE", 1 << 16)
    path = tmp_path / f"rows.{reader}.gz"
    content = {"json": b'["' + b"a" * 2**20 + b'"]', "csv": b"q\n" + b"a" * 2**20, "jsonl": b"1" * 2**20}
    for bomb in (content.get(reader, b"a" * 2**20), content.get(reader, b"") + b"a\n" * 2**19):
        path.write_bytes(gzip.compress(bomb))
        with pytest.raises(DataError, match=r"longer than 65,536|fields"):
            list(readers.read(path, reader, "rows"))


def test_settings_hold_no_key_and_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "value-of-a-key-9f8e7d")
    with pytest.raises(UserError, match="the value of SOME_API_KEY") as told:
        files_of(written(tmp_path / "a", source=files("rows.jsonl") | {"origin": "value-of-a-key-9f8e7d"}))
    assert "9f8e7d" not in str(told.value)
    with pytest.raises(UserError, match="a name or password") as told:
        files_of(written(tmp_path / "b", source=files("rows.jsonl") | {"origin": "https://me:pass-word@host/x"}))
    assert "pass-word" not in str(told.value)


def test_the_name_of_an_artifact_is_a_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("../../elsewhere", "/etc/x", "a/b", "..", ".x", "-x", "a\nb", "x" * 101):
        assert run.door(["stage=data", "recipe=miniature_questions", f"store={tmp_path}/runs", f"name={name}"]) == 2
        assert "cannot be a folder's name" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from alignment import console
    from alignment.reporting import pages

    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m"
    console.make(force_terminal=True).print(evil, markup=False)
    console.say(console.plain(f"[bold]{evil}[/nothing]"))
    console.table(evil, ("a",), [(evil,)])
    pages.complain(UserError(evil, cause=evil, remedy=evil))
    printed = capsys.readouterr()
    shown = printed.out + printed.err
    assert "]52;c;" in shown, "the rest is shown"
    assert not any(
        character in shown.replace("\x1b[1;31m", "").replace("\x1b[0m", "").replace("\x1b[32m", "")
        for character in ("\x1b]", "\x1b[2J", "\x07", "\x9b")
    )


def test_json_from_elsewhere_nests_as_deep_as_python_reads(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(DataError, match="nested too deeply"):
        list(readers.read(path, "jsonl", "rows"))
    path.write_text(json.dumps({"a": 1}))
    assert list(readers.read(path, "jsonl", "rows"))
