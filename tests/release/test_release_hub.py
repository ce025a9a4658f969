"""Uploads, with a hub of our own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

from alignment.errors import UserError
from alignment.release import hub


class Stub:
    """What the hub was asked; ``there`` holds its repositories and whether they are private."""

    def __init__(self) -> None:
        self.there: dict[str, bool] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.fails: Exception | None = None

    def __call__(self, token: str) -> Stub:
        self.asked.append(("login", token))
        return self

    def repo_info(self, name: str) -> SimpleNamespace:
        if self.fails is not None:
            raise self.fails
        if name not in self.there:
            raise RepositoryNotFoundError("no such repository", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]
        return SimpleNamespace(private=self.there[name])

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.there.setdefault(name, private)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: str
    ) -> SimpleNamespace:
        if self.fails is not None:
            raise self.fails
        assert delete_patterns == "*", "old weights beside new ones would be what is loaded"
        self.asked.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir()), commit_message))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    found = Stub()
    monkeypatch.setattr(huggingface_hub, "HfApi", found)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    return found


def test_a_private_repository_is_made(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("")
    hub.check("lab/model", private=True)
    assert stub.there == {}, "checking makes nothing"
    assert hub.push(tmp_path, "lab/model", private=True, message="ppo, bf16") == "https://hub/lab/model/commit/1"
    assert stub.there == {"lab/model": True}
    assert stub.asked[-1] == ("upload", "lab/model", ["README.md"], "ppo, bf16")
    assert ("login", "secret") in stub.asked


def test_a_public_one_is_refused(stub: Stub) -> None:
    stub.there["lab/model"] = False
    with pytest.raises(UserError, match="is public"):
        hub.check("lab/model", private=True)
    hub.check("lab/model", private=False)


def test_who_is_not_logged_in(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="nobody is logged in") as caught:
        hub.check("lab/model", private=True)
    assert "HF_TOKEN" in caught.value.remedy
    assert stub.asked == []


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x/y", "a b/c"])
def test_no_repository(name: str, stub: Stub) -> None:
    with pytest.raises(UserError, match="no repository"):
        hub.check(name, private=True)


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("offline"), ConnectionError()])
def test_a_hub_that_is_away(error: Exception, stub: Stub, tmp_path: Path) -> None:
    stub.fails = error
    with pytest.raises(UserError, match="cannot be reached"):
        hub.check("lab/model", private=True)
    with pytest.raises(UserError, match="cannot be reached"):
        hub.push(tmp_path, "lab/model", private=True, message="x")
