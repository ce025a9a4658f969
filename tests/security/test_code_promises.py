"""What no line of the project may do, read from the lines themselves; each finder is tried on a line that breaks it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "alignment"
Finder = Callable[[ast.AST], bool]


def called(node: ast.AST) -> str:
    """``torch.load`` of a call to it, else nothing."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def given(node: ast.AST, name: str) -> str | None:
    """A keyword of a call, as it is spelled."""
    assert isinstance(node, ast.Call)
    return next((ast.unparse(one.value) for one in node.keywords if one.arg == name), None)


def imports(*names: str) -> Finder:
    def found(node: ast.AST) -> bool:
        modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        return any(module.split(".")[0] in names for module in modules)

    return found


def is_named(*names: str) -> Finder:
    return lambda node: called(node) in names or called(node).split(".")[-1] in names


FORBIDDEN: dict[str, tuple[Finder, str]] = {
    "pickles are read by torch.load, and sealed between the processes of a run": (
        imports("pickle", "marshal", "shelve", "dill", "joblib"),
        "import pickle",
    ),
    "torch.load takes weights only": (
        lambda node: called(node) == "torch.load" and given(node, "weights_only") != "True",
        "torch.load(path)",
    ),
    "arrays of objects are not read": (
        lambda node: called(node) in ("np.load", "numpy.load") and given(node, "allow_pickle") != "False",
        "np.load(path)",
    ),
    "code of others is not trusted": (
        lambda node: isinstance(node, ast.Call) and given(node, "trust_remote_code") not in (None, "False"),
        "load(path, trust_remote_code=settings.trust)",
    ),
    "a class that a config chooses is loaded without its code": (
        lambda node: (
            called(node).startswith("Auto")
            and called(node).endswith(".from_pretrained")
            and given(node, "trust_remote_code") != "False"
        ),
        "AutoModel.from_pretrained(path)",
    ),
    "models are read from safetensors": (
        lambda node: (
            called(node).endswith("from_pretrained")
            and "dtype" in {one.arg for one in node.keywords}  # type: ignore[attr-defined]
            and given(node, "use_safetensors") != "True"
        ),
        "architecture.from_pretrained(path, dtype=dtype)",
    ),
    "YAML makes plain values": (
        lambda node: (
            called(node) in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
            and not ast.unparse(node).endswith(", _EachKeyOnce)")
        ),
        "yaml.load(text, yaml.Loader)",
    ),
    "nothing is evaluated": (
        lambda node: called(node) in ("eval", "exec", "compile", "__import__"),
        "eval(text)",
    ),
    "no shell": (
        lambda node: (
            called(node) in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
            or (isinstance(node, ast.Call) and given(node, "shell") not in (None, "False"))
        ),
        "subprocess.run(line, shell=True)",
    ),
    "no archive is unpacked onto the disk": (imports("tarfile", "zipfile"), "import tarfile"),
    "no template outside of a sandbox": (
        lambda node: is_named("Environment", "Template")(node) and called(node) != "Template",
        "jinja2.Environment()",
    ),
    "certificates are checked": (
        lambda node: isinstance(node, ast.Call) and given(node, "verify") == "False" and "wandb" not in called(node),
        "requests.get(url, verify=False)",
    ),
    "temporaries have no name that others can guess": (is_named("mktemp"), "tempfile.mktemp()"),
}


EXCEPTED = {"pickles are read by torch.load, and sealed between the processes of a run": {"training/team.py"}}


@cache
def nodes() -> list[tuple[Path, ast.AST]]:
    """Every call and import."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
    wanted = (ast.Call, ast.Import, ast.ImportFrom)
    return [(path, node) for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, wanted)]


@pytest.mark.parametrize("promise", FORBIDDEN)
def test_no_line_breaks_it(promise: str) -> None:
    finder, breaking = FORBIDDEN[promise]
    assert any(map(finder, ast.walk(ast.parse(breaking)))), "the finder finds nothing"
    broken = {path.relative_to(ROOT).as_posix(): getattr(node, "lineno", 0) for path, node in nodes() if finder(node)}
    assert broken.keys() == EXCEPTED.get(promise, set()), f"{promise}: {broken}"


def calls(where: Callable[[str], bool]) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path, node in nodes() if where(called(node))}


def test_who_listens_is_known() -> None:
    listening = ("TCPSite", "UnixSite", "run_app", "HTTPServer", "ThreadingHTTPServer", "create_server", "TCPStore")
    assert calls(lambda name: name.split(".")[-1] in listening) == {"scoring/service.py", "training/lifelines.py"}


def test_who_starts_processes_is_known() -> None:
    starting = ("subprocess.", "os.exec", "os.spawn", "os.posix_spawn", "os.fork")
    assert {path.split("/")[0] for path in calls(lambda name: name.startswith(starting))} <= {"cluster", "energy"}


def test_jinja_is_nowhere_ours() -> None:
    """A model's template is rendered by transformers; of Jinja itself only the error is imported."""
    from_jinja = {
        (path.name, alias.name)
        for path, node in nodes()
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jinja2")
        for alias in node.names
    }
    assert from_jinja <= {("classifier.py", "TemplateError")}
    assert not any(imports("jinja2")(node) for _, node in nodes() if isinstance(node, ast.Import))


def test_transformers_does_its_part() -> None:
    """Its templates run in Jinja's immutable sandbox, and its trainer reads state as weights only."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    folder = Path(str(package.origin)).parent
    templates = (folder / "utils" / "chat_template_utils.py").read_text(encoding="utf-8")
    assert "ImmutableSandboxedEnvironment(" in templates
    trainer = ast.parse((folder / "trainer.py").read_text(encoding="utf-8"))
    loads = [node for node in ast.walk(trainer) if called(node) == "torch.load"]
    assert len(loads) > 3, "the finder finds nothing"
    assert all(given(node, "weights_only") == "True" for node in loads)


def test_messages_between_processes_are_sealed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever reaches the port of the ranks can write there; what he writes is not unpickled."""
    import pickle

    from alignment.errors import UserError
    from alignment.training import team

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "mark",)

    monkeypatch.setenv(team.TEAM_KEY, "a" * 64)
    message = team.packed({"step": 3})
    assert team.unpacked(message) == {"step": 3}
    forged = pickle.dumps(Evil())
    monkeypatch.delenv(team.TEAM_KEY)
    unsealed = team.packed(Evil())
    monkeypatch.setenv(team.TEAM_KEY, "a" * 64)
    for wrong in (forged, unsealed, message[:-1], b"", message[: team.SEAL] + forged):
        with pytest.raises(UserError, match="no process of this run"):
            team.unpacked(wrong)
    assert not (tmp_path / "mark").exists()


def test_every_job_draws_a_key_of_its_own() -> None:
    script = (ROOT.parent / "jobs" / "lib.sh").read_text()
    assert "ALIGNMENT_TEAM_KEY=$(head -c 32 /dev/urandom" in script
    assert "export ALIGNMENT_TEAM_KEY" in script
