from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.data import recipe as recipes
from alignment.data import sources
from alignment.errors import DataError, UserError

from .examples import parse, recipe_values, source

REPOSITORY = Path(__file__).parents[2]
SHIPPED = sorted([*(REPOSITORY / "data_recipes").glob("*.yaml"), *(REPOSITORY / "tests" / "recipes").glob("*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path: Path) -> None:
    recipes.load(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "chats"}, "kind='chats'"),
        ({"sed": 1}, "sed: there is no such key"),
        ({"max_dropped": 1.5}, "max_dropped=1.5"),
        ({"seed": None}, "seed=None"),
        ({"splits": {"train": 0.5, "valid": 0.1, "test": 0.1}}, "0.5 + 0.1 + 0.1 is 0.7, not 1"),
        ({"splits": {"train": 1.0}}, "splits.valid: a value is needed"),
        ({"splits": None}, "'s' does not bring splits of its own"),
        ({"sources": []}, "sources"),
    ],
)
def test_a_wrong_recipe_says_which_key(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(source(), **changes)
    assert says in caught.value.problem


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "prompt_completions"}, "sources.0.format='prompt_completions'"),
        ({"format": "wikitext", "columns": {"text": "t"}}, "sources.0.format='wikitext': does not give conversations"),
        ({"format": "miniature", "columns": None}, "sources.0.format='miniature'"),
        ({"files": None}, "sources.0: exactly one of files, hub, miniature, dataset is needed, not none"),
        ({"hub": {"repository": "a/b", "revision": "c", "subset": None, "split": "train"}}, "not files and hub"),
        ({"columns": {"prompt": "q"}}, "sources.0.columns.completion: a column is needed"),
        ({"columns": {"prompt": "q", "completion": "a", "answer": "b"}}, "sources.0.columns.answer"),
        ({"options": {"paths": "all"}}, "paths: there is no such key"),
        ({"limit": 0}, "sources.0.limit=0"),
        ({"scattered": True}, "sources.0.scattered: there is no group"),
        ({"weight": 0.0}, "sources.0.weight=0.0"),
        ({"expected_rows": 0}, "sources.0.expected_rows=0"),
        ({"licence": ""}, "sources.0.licence=''"),
        ({"files": {"paths": [], "reader": "jsonl"}}, "sources.0.files.paths=[]"),
        ({"files": {"paths": ["a"], "reader": "xml"}}, "sources.0.files.reader='xml'"),
    ],
)
def test_a_wrong_source_says_which_key(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(source(**changes))
    assert says in caught.value.problem


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'prompt_completion'.*messages") as caught:
        parse(source(format="prompt_completions"))
    assert "test.yaml" in caught.value.cause


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="2 of them are called 's'"):
        parse(source(), source(path="other.jsonl"))


def test_load_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe_values(source())))
    assert recipes.load(path) == parse(source())


def test_load_tells_where_yaml_breaks(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("kind: text\nsources: [\n")
    with pytest.raises(DataError) as caught:
        recipes.load(path)
    assert caught.value.where.startswith(f"{path}:")
    path.write_bytes(b"kind: \xff")
    with pytest.raises(DataError, match="UTF-8"):
        recipes.load(path)
    path.write_text("- a\n")
    with pytest.raises(DataError, match="holds no keys"):
        recipes.load(path)


def test_load_suggests_a_recipe_of_a_like_name(tmp_path: Path) -> None:
    (tmp_path / "conversations.yaml").touch()
    with pytest.raises(UserError, match="Did you mean 'conversations'"):
        recipes.load(tmp_path / "conversation.yaml")


def test_the_digest_depends_on_everything_but_the_place() -> None:
    recipe = parse(source())
    assert recipe.rooted("/elsewhere").digest == recipe.digest
    assert parse(source(), seed=1).digest != recipe.digest
    assert parse(source(limit=3)).digest != recipe.digest


def files(paths: list[str]) -> sources.Files:
    return sources.Files.parse({"paths": paths, "reader": "jsonl"})


def test_files_are_found_in_order_and_named_as_the_recipe_spells_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in/b.x", "in/a.x", "c"):
        (tmp_path / name).touch()
    found = sources.resolve(files(["c", "in/*.x"]), None, tmp_path)
    assert [(str(path.relative_to(tmp_path)), name) for path, name in found] == [
        ("c", "c"), ("in/a.x", "in/a.x"), ("in/b.x", "in/b.x"),
    ]  # fmt: skip
    assert sources.resolve(files(["a.x"]), "in", tmp_path) == [(tmp_path / "in" / "a.x", "a.x")]
    assert sources.resolve(files([str(tmp_path / "c")]), None, tmp_path / "in")[0][0] == tmp_path / "c"


@pytest.mark.parametrize("outside", ["../secret", "sub/../../secret", "/etc/hostname", "link"])
def test_a_root_is_not_left(tmp_path: Path, outside: str) -> None:
    (tmp_path / "secret").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="lies outside of"):
        sources.resolve(files([outside]), str(root), tmp_path)


def test_a_missing_file_or_root_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(UserError, match=r"no such file\n.*recipe\.root.*\n.*'train\.jsonl'"):
        sources.resolve(files(["trian.jsonl"]), None, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        sources.resolve(files(["*.csv"]), None, tmp_path)
    with pytest.raises(UserError, match="root=nowhere: there is no such folder"):
        sources.resolve(files(["train.jsonl"]), "nowhere", tmp_path)


def test_local_files_are_those_that_will_be_read(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    hub = {"repository": "a/b", "revision": "c", "subset": None, "split": "train"}
    recipe = parse(source("1", "b.jsonl"), source("2", files=None, hub=hub), source("3", "a.jsonl"))
    assert recipes.local_files(recipe, tmp_path) == [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]


def test_licences_are_each_named_once() -> None:
    assert parse(source("1", licence="MIT"), source("2", licence="CC0"), source("3")).licences == ("CC0", "MIT")


def test_recipes_can_be_checked_without_torch_or_datasets() -> None:
    code = "import sys, alignment.data.recipe; print([m for m in ('torch', 'datasets', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
