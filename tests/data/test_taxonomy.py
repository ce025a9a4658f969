"""The taxonomy: two reports on one page, and a file that users extend."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alignment.data import lists, taxonomy
from alignment.data.taxonomy import Taxonomy
from alignment.errors import DataError, UserError
from alignment.miniature.preprompts import TEMPLATES
from alignment.miniature.skills import unsafe

SHIPPED = lists.FOLDER / taxonomy.SHIPPED


@pytest.fixture(scope="module")
def shipped() -> Taxonomy:
    return taxonomy.load()


@pytest.fixture
def values() -> dict:
    return yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))


def test_the_miniature_world_speaks_of_the_same_categories_and_attacks(shipped: Taxonomy) -> None:
    assert tuple(shipped.categories) == unsafe.CATEGORIES
    assert tuple(TEMPLATES) == unsafe.CATEGORIES
    assert set(shipped.attacks) == {*unsafe.ATTACKS, "other"}


def test_it_holds_what_the_two_reports_list(shipped: Taxonomy) -> None:
    assert len(shipped.policies) == 6
    assert list(shipped.order) == ["concern", "risk", "information"]
    llama = {"psychological", "logic", "syntactic", "semantic", "perspective", "non_english", "other"}
    assert llama < set(shipped.attacks)
    for category in shipped.categories.values():
        steps = [category.template.find(f"{number}. ") for number in (1, 2, 3)]
        assert -1 < steps[0] < steps[1] < steps[2]
        assert "safety concern" in category.template[steps[0] : steps[1]]
        assert "risk" in category.template or "hurt" in category.template


def test_categories_and_policies_are_mapped_onto_each_other(shipped: Taxonomy) -> None:
    assert shipped.policies_of("illicit_criminal") == ("csae", "personal_information", "dangerous_malicious")
    assert shipped.policies_of("hateful_harmful") == ("hate_harassment", "dangerous_malicious", "sexually_explicit")
    assert shipped.policies_of("unqualified_advice") == ("dangerous_malicious", "medical_advice")
    for policy in shipped.policies:
        found = shipped.categories_of(policy)
        assert found, f"no category leads to {policy}"
        assert all(policy in shipped.policies_of(category) for category in found)


def test_names_are_checked_with_the_nearest_one(shipped: Taxonomy) -> None:
    shipped.check("hateful_harmful", "semantic")
    shipped.check("hateful_harmful", None)
    with pytest.raises(UserError, match=r"category 'hateful'.*\nDid you mean 'hateful_harmful'\?"):
        shipped.check("hateful", None)
    with pytest.raises(DataError, match=r"^f\.parquet:3: attack 'sementic'.*\nDid you mean 'semantic'\?") as error:
        shipped.check("hateful_harmful", "sementic", "f.parquet:3")
    assert error.value.where == "f.parquet:3"
    with pytest.raises(UserError, match="policy 'hate'"):
        shipped.categories_of("hate")
    with pytest.raises(UserError, match="category 'hate'"):
        shipped.policies_of("hate")


def test_a_user_extends_it(values: dict, tmp_path: Path) -> None:
    values["policies"]["election_lies"] = {"title": "lies about elections", "definition": "Wrong days and places."}
    values["categories"]["civic_harm"] = {
        "title": "harm to elections",
        "definition": "Keeping people from voting.",
        "topics": [{"name": "wrong polling days", "policy": "election_lies"}],
        "template": "Name the concern first.",
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    mine = taxonomy.load(path)
    assert mine.policies_of("civic_harm") == ("election_lies",)
    mine.check("civic_harm", "other")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("categories", "hateful_harmful", "topics", 0, "policy"), "hate_harrassment",
         r"categories\.hateful_harmful\.topics\.0\.policy: 'hate_harrassment'[^()]*\(t\.yaml\)\nDid you mean 'hate_h"),
        (("categories", "hateful_harmful", "topics", 1, "name"), "defamation", "'defamation' stands twice"),
        (("categories", "hateful_harmful", "topics"), [], r"categories\.hateful_harmful\.topics"),
        (("categories", "hateful_harmful", "template"), "", r"categories\.hateful_harmful\.template"),
        (("categories", "hateful_harmful", "tempalte"), "x", r"tempalte: there is no such key"),
        (("categories", "Hateful!"), {"title": "x", "definition": "x", "topics": [{"name": "x", "policy": None}],
                                      "template": "x"}, r"categories\.Hateful!: is no identifier"),
        (("attacks", "logic", "title"), 3, r"attacks\.logic\.title=3"),
        (("preprompts",), ["You are wise.", " "], r"preprompts\.1: is empty"),
        (("policies",), {}, "policies"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_key(values: dict, path: tuple, value: object, message: str) -> None:
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UserError, match=message) as error:
        Taxonomy.parse(values, "t.yaml")
    assert "t.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: b: c\n", r"t\.yaml:1: is not YAML"),
        (b"a: 1\nb: 2\na: 3\n", r"t\.yaml:3: is not YAML: the key 'a' stands twice"),
        (b"a: \xff\n", r"t\.yaml: byte 3 is not UTF-8"),
        (b"- a\n", r"t\.yaml: holds no keys"),
        (b"", r"t\.yaml: holds no keys"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        taxonomy.load(path)


def test_a_file_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "taxonomy.yaml").write_text("")
    with pytest.raises(UserError, match=r"taxonmy\.yaml: there is no such file\nDid you mean 'taxonomy\.yaml'\?"):
        taxonomy.load(tmp_path / "taxonmy.yaml")
