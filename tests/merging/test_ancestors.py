"""Which model others were trained from, by their records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alignment import artifacts
from alignment.artifacts import Artifact, Parent
from alignment.errors import UserError
from alignment.merging import ancestors


class Family:
    """Records on disk, by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.members: dict[str, Artifact] = {}

    def add(self, name: str, kind: artifacts.Kind = "policy", **parents: str) -> Artifact:
        """``parents`` by input, dots written as ``__``."""
        path = self.root / name
        path.mkdir()
        links = {
            key.replace("__", "."): Parent(f"step:{parent}", parent, str(self.root / parent))
            for key, parent in parents.items()
        }
        self.members[name] = artifacts.finish(Artifact(path, kind, "sft", name, name, parents=links))
        return self.members[name]


@pytest.fixture
def family(tmp_path: Path) -> Family:
    """text → base → (chat → (a, b), other chat → c); apart from them: stranger."""
    found = Family(tmp_path)
    found.add("text", "dataset")
    found.add("base", data="text")
    found.add("chat", model__weights="base", data="text")
    found.add("chat2", model__weights="base", data="text")
    found.add("a", "reward", model__weights="chat", data="text")
    found.add("b", "reward", model__weights="chat", data="text")
    found.add("c", "reward", model__weights="chat2", data="text")
    found.add("stranger", data="text")
    return found


def common(family: Family, *names: str, init: str | None = None) -> str:
    models = [family.members[name] for name in names]
    return ancestors.common(models, None if init is None else family.members[init]).fingerprint


def test_the_nearest_is_found(family: Family) -> None:
    assert common(family, "a", "b") == "chat"
    assert common(family, "a", "c") == "base"
    assert common(family, "a", "b", "c") == "base"


def test_reinforcement_learning_goes_on_with_its_policy_and_no_judge_is_an_ancestor(family: Family) -> None:
    family.add("r1", policy="chat", prompts="text", reward__model="a")
    family.add("r2", policy="chat", prompts="text", reward__model="a", watching__guard="b")
    family.add("r3", policy="chat2", prompts="text", reward__model="a")
    assert common(family, "r1", "r2") == "chat"
    assert common(family, "r1", "chat") == "chat"
    assert common(family, "r1", "r3") == "base"


def test_a_model_may_be_merged_with_where_it_began(family: Family) -> None:
    assert common(family, "a", "chat") == "chat"
    assert common(family, "chat", "a") == "chat"


def test_data_and_teachers_are_no_ancestors(family: Family) -> None:
    family.add("pupil", model__weights="stranger", teacher="chat")
    for name in ("stranger", "pupil"):
        with pytest.raises(UserError, match="no common ancestor") as caught:
            common(family, "a", name)
        assert "do not meet" in caught.value.cause


def test_a_merge_descends_from_all_its_models(family: Family) -> None:
    family.add("ab", "reward", models__0="a", models__1="b")
    assert common(family, "ab", "c") == "base"
    family.add("foreign_merge", "reward", models__0="gone1", models__1="gone2", init="chat")
    assert common(family, "a", "foreign_merge") == "chat"


def test_what_is_gone_still_has_a_name(family: Family) -> None:
    shutil.rmtree(family.root / "chat")
    assert common(family, "a", "b") == "chat"
    with pytest.raises(UserError, match="no common ancestor") as caught:
        common(family, "a", "c")
    assert str(family.root / "chat") in caught.value.cause
    assert common(family, "a", "c", init="base") == "base"


def test_another_artifact_in_the_same_place_is_not_the_parent(family: Family) -> None:
    shutil.rmtree(family.root / "chat")
    family.add("chat", model__weights="stranger")
    path = family.root / "chat" / artifacts.RECORD
    path.write_text(path.read_text().replace('"fingerprint": "chat"', '"fingerprint": "another"'))
    with pytest.raises(UserError, match="no common ancestor"):
        common(family, "a", "stranger")


def test_a_named_ancestor_must_be_one(family: Family) -> None:
    assert common(family, "a", "b", init="base") == "base"
    with pytest.raises(UserError, match="does not descend from") as caught:
        common(family, "a", "b", init="stranger")
    assert "chat, base" in caught.value.cause


def test_foreign_models_need_one_to_be_named(family: Family, tmp_path: Path) -> None:
    foreign = []
    for name in "xy":
        (tmp_path / f"foreign_{name}").mkdir()
        (tmp_path / f"foreign_{name}" / "config.json").write_text(name)
        foreign.append(artifacts.foreign(tmp_path / f"foreign_{name}", f"dir:{name}"))
    with pytest.raises(UserError, match="no common ancestor") as caught:
        ancestors.common(foreign, None)
    assert "foreign" in caught.value.cause
    assert "init=" in caught.value.remedy
    assert ancestors.common(foreign, family.members["base"]).fingerprint == "base"
    # One that was trained from the other says so itself.
    child = Artifact(
        tmp_path, "policy", "sft", "child", "child",
        parents={"model.weights": Parent("dir:x", foreign[0].fingerprint, str(foreign[0].path))},
    )  # fmt: skip
    assert ancestors.common([child, foreign[0]], None).fingerprint == foreign[0].fingerprint


def test_what_one_model_began_as(family: Family) -> None:
    assert common(family, "a") == "chat"
    assert common(family, "chat") == "base"
    family.add("slerp", models__0="a", models__1="b", init="base")
    family.add("mean", models__0="a", models__1="b")
    assert common(family, "slerp") == "base", "as it was named"
    assert common(family, "mean") == "chat", "not the first of its models"
    with pytest.raises(UserError, match="no common ancestor") as caught:
        common(family, "stranger")
    assert "from nothing" in caught.value.cause


def test_a_merge_did_not_begin_as_one_of_its_models(family: Family) -> None:
    """A third of its weights come from `a`; what it has learned is counted from what all of them come from."""
    family.add("ac", models__0="a", models__1="c")
    assert common(family, "ac", "a") == "base"
    with pytest.raises(UserError, match="does not descend from"):
        common(family, "ac", init="a")


def test_a_warp_loop_leads_back_to_its_first_policy(family: Family) -> None:
    family.add("slerp1", models__0="a", models__1="b", init="chat")
    family.add("liti1", models__0="slerp1", init="chat")
    family.add("r1", policy="liti1")
    family.add("r2", policy="liti1")
    assert common(family, "r1", "r2") == "liti1"
    family.add("slerp2", models__0="r1", models__1="r2", init="liti1")
    assert common(family, "slerp2") == "liti1"
    assert common(family, "slerp2", init="chat") == "chat"


def test_a_merge_remembers_what_its_models_had_in_common(family: Family) -> None:
    family.add("ab", models__0="a", models__1="b")
    told = {"ancestor": {"fingerprint": "chat", "name": "the chat model"}}
    (family.members["ab"].path / ancestors.MERGE).write_text(json.dumps(told))
    for name in "ab":
        shutil.rmtree(family.root / name)
    found = ancestors.common([family.members["ab"]], None)
    assert (found.fingerprint, found.name) == ("chat", "the chat model")
    assert ancestors.found_again(found) is None


def test_the_ancestor_itself_is_found(family: Family, tmp_path: Path) -> None:
    def found(*names: str) -> Artifact | None:
        return ancestors.found_again(ancestors.common([family.members[name] for name in names], None))

    chat = found("a", "b")
    assert chat is not None
    assert (chat.fingerprint, chat.path) == ("chat", family.root / "chat")
    foreign_path = tmp_path / "theirs"
    foreign_path.mkdir()
    (foreign_path / "config.json").write_text("{}")
    theirs = artifacts.foreign(foreign_path, "dir:theirs")
    for name in "xy":
        path = family.root / name
        path.mkdir()
        link = Parent("dir:theirs", theirs.fingerprint, str(foreign_path))
        family.members[name] = Artifact(path, "policy", "sft", name, name, parents={"model.weights": link})
    again = found("x", "y")
    assert again is not None
    assert again.path == foreign_path
    (foreign_path / "config.json").write_text("{} ")
    assert found("x", "y") is None, "it is no longer what it was"
    shutil.rmtree(family.root / "chat")
    assert found("a", "b") is None


def test_a_store_that_was_moved(tmp_path: Path) -> None:
    """Records name their parents by where these were."""
    first = tmp_path / "first" / "mini"
    first.mkdir(parents=True)
    family = Family(first)
    family.add("chat")
    family.add("a", model__weights="chat")
    (tmp_path / "first").rename(tmp_path / "second")
    moved = artifacts.load(tmp_path / "second" / "mini" / "a")
    found = ancestors.found_again(ancestors.common([moved], None))
    assert found is not None
    assert found.path == tmp_path / "second" / "mini" / "chat"
