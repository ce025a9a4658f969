"""Nothing private leaves, and checksums say what is there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alignment.errors import UserError
from alignment.release import folder


@pytest.fixture
def release(tmp_path: Path) -> Path:
    out = tmp_path / "release"
    out.mkdir()
    (out / "README.md").write_text("See https://host/home/page and ai.google.dev/gemma/terms, and/or data/mnt/x.")
    (out / "tokenizer.json").write_text('["/home/word"]')
    save_file({"a": torch.zeros(1)}, out / "model.safetensors", {"format": "pt"})
    return out


def test_nothing_private(release: Path, tmp_path: Path) -> None:
    folder.refuse_leaks(release, {"the store": tmp_path / "runs", "a root": Path("/a")})


@pytest.mark.parametrize("text", ["from /home/somebody/models", "(/tmp/x)", "`/mnt/data`", r"C:\Users\me"])
@pytest.mark.parametrize("name", ["README.md", "LICENSE", "config.json", "chat_template.jinja"])
def test_paths_of_this_machine(name: str, text: str, release: Path) -> None:
    (release / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} would tell a path"):
        folder.refuse_leaks(release, {})


def test_folders_that_are_named(release: Path) -> None:
    (release / "README.md").write_text("made in /abc/store/runs/x")
    with pytest.raises(UserError, match="the store"):
        folder.refuse_leaks(release, {"the store": Path("/abc/store")})


def test_secrets_of_the_environment(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("SHORT_KEY", "terms")
    folder.refuse_leaks(release, {})
    save_file({"a": torch.zeros(1)}, release / "model.safetensors", {"told": "hf_abcdefgh"})
    with pytest.raises(UserError, match=r"model\.safetensors would tell the value of HF_TOKEN") as caught:
        folder.refuse_leaks(release, {})
    assert "hf_abcdefgh" not in str(caught.value)


def test_checksums(release: Path) -> None:
    assert not folder.is_whole(release)
    folder.write_sums(release)
    checked = subprocess.run(["sha256sum", "-c", folder.SUMS], cwd=release, capture_output=True, text=True)
    assert checked.returncode == 0
    assert checked.stdout.count("OK") == 3
    assert folder.is_whole(release)
    (release / "README.md").write_text("another")
    assert not folder.is_whole(release)
    assert subprocess.run(["sha256sum", "-c", folder.SUMS], cwd=release, capture_output=True).returncode == 1


def test_a_file_more_or_less_is_seen(release: Path) -> None:
    folder.write_sums(release)
    (release / "more").write_text("")
    assert not folder.is_whole(release)
    (release / "more").unlink()
    (release / "README.md").unlink()
    assert not folder.is_whole(release)
    assert not folder.is_whole(release / "nothing")
