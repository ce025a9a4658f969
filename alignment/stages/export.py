"""Write a model as a folder that anyone can load, with its card, licences and checksums; upload it where asked.

``release/`` in the artifact's folder is what is handed on; the record, the proof and links to the model's files, by
which other stages and commands find it, lie beside it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import artifacts, console, files, parts
from alignment.artifacts import Artifact, Outcome, Tokens
from alignment.errors import UserError
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, place, reference, text
from alignment.store import Store, parse_reference
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.release.descent import Node
    from alignment.release.licences import Licence
    from alignment.release.proof import Proof
    from alignment.release.provenance import Provenance
    from alignment.release.weights import Written

ALGORITHM_VERSION = 1
RELEASE = "release"
ABOUT = "release.json"
"""What is known of the release and is no part of it: how it was written, and how it compares with the model."""
LINKED = (".safetensors", ".json", ".jinja", ".model")
"""Suffixes of the release's files that make a model."""


class Settings(StrictSettings):
    """``stage=export``."""

    model: str = reference("the policy or reward model to release", kinds=("policy", "reward"))
    title: str | None = text("what the card calls it; null takes its step's name")
    dtype: Literal["bf16", "fp32"] = identity("of the released weights")
    evaluations: list[str] | None = reference(
        "evaluations of the model for its card, [a,b,…]; null takes all that the store holds when it is made",
        kinds=("evaluation",),
    )
    licence: str | None = text(
        "SPDX identifier or text; null derives it: gemma for what descends from Gemma, else the one licence of all data"
    )
    origins: list[str] = text(
        "licences that no record tells, [<reference>=<licence>,…]; other than gemma says that it is no Gemma"
    )
    allow_unknown: bool = identity("release it although a licence in its lineage is not known; its card says so")
    terms: str | None = place("your copy of the Gemma Terms of Use, as text: needed for what descends from Gemma")
    push: str | None = text("a hub repository to upload the release to, <organisation>/<name>; null uploads nothing")
    private: bool = identity("whether the repository is private; a public one is then refused")
    engine: EngineSettings = execution("where the release is loaded and compared with the model")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, what ``origins`` say included."""
        settings: Settings = super().parse(values, where)
        if settings.origins:
            from alignment.release import provenance

            provenance.told(settings.origins)
        return settings


def sources(settings: Settings) -> list[Path]:
    """The copy of the terms: another text is another release."""
    path = files.typed(settings.terms or "")
    return [path] if settings.terms is not None and path.is_file() else []


def disk_needed(settings: Settings) -> int:
    """Bytes for the released weights, where the model lies in a folder that is named."""
    model = parse_reference(settings.model)
    folder = files.typed(model.name)
    shards = folder.glob("*.safetensors") if model.scheme in ("run", "dir") else ()
    return sum(shard.stat().st_size for shard in shards) + 64 * 2**20


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Check whether and how the model may be released, write and try the release, upload it where that is asked.

    Raises :class:`UserError` for a licence that is unknown or does not follow, for terms that are missing, and where
    the folder, once loaded, is not the model.
    """
    from alignment.data import seen
    from alignment.gemma import heads
    from alignment.release import descent, evaluations, folder, gemma_terms, hub, licences, provenance

    model, store = inputs["model"].need("policy", "reward"), Store(out.parent.parent)
    nodes = descent.lineage(model, settings.model, store)
    origin = provenance.trace(nodes, provenance.told(settings.origins))
    licence = licences.settle(settings.licence, origin, allow_unknown=settings.allow_unknown)
    if settings.terms is not None and not files.typed(settings.terms).is_file():
        raise UserError(f"terms={settings.terms}: there is no such file", remedy="Name your copy, or say terms=null.")
    terms = gemma_terms.read(settings.terms, origin.gemma) if origin.gemma else None
    measured = _measured(settings, inputs, model, store)
    evaluations.read(measured, model)
    if settings.push is not None:
        hub.check(settings.push, private=settings.private)
    release = out / RELEASE
    if not folder.is_whole(release):
        _make(settings, model, Terms(nodes, origin, licence, terms), _kept(measured, out), store, out)
    told = json.loads((out / ABOUT).read_text(encoding="utf-8"))
    _link(release, out)
    seen.write(out, [], [model.path])
    notes: dict[str, Any] = {"release": RELEASE, "licence": licence.id, "dtype": settings.dtype}
    notes |= {"descends_from_gemma": bool(origin.gemma), "unknown_licences": [*origin.unknown] or None}
    if settings.push is not None:
        message = f"{settings.title or nodes[-1].name}, {settings.dtype}"
        notes["pushed"] = hub.push(release, settings.push, private=settings.private, message=message)
        console.say(f"  uploaded: {notes['pushed']}", style="dim")
    console.say(f"  {release}: the folder to hand on, under {licence.id}", style="")
    metrics = {name: float(value) for name, value in {**told["weights"], **told["proof"]}.items() if value is not None}
    kind: Literal["policy", "reward"] = "reward" if heads.is_reward(model.path) else "policy"
    return Outcome(kind, metrics, "rounding", tokens=Tokens(**told["tokens"]), notes=notes)


@dataclass(frozen=True)
class Terms:
    """Under what a model is released, and what that follows from."""

    nodes: tuple[Node, ...]
    origin: Provenance
    licence: Licence
    gemmas: str | None

    def statement(self, model: Artifact, settings: Settings) -> str | None:
        """That Gemma was modified; None for what does not descend from it."""
        from alignment.release import gemma_terms

        if not self.origin.gemma:
            return None
        return gemma_terms.modification(self.nodes[-1].name, model.fingerprint, settings.dtype)


def _measured(settings: Settings, inputs: Mapping[str, Artifact], model: Artifact, store: Store) -> list[Artifact]:
    from alignment.release import evaluations

    if settings.evaluations is None:
        return evaluations.of(model, store)
    return [inputs[f"evaluations.{place}"] for place in range(len(settings.evaluations))]


def _kept(measured: list[Artifact], out: Path) -> list[Artifact]:
    """The evaluations that the first start found, so that a later one writes the same card."""
    path = out / parts.FOLDER / "evaluations.json"
    files.make_folder(path.parent)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    if not path.is_file() or not all((Path(one) / artifacts.RECORD).is_file() for one in kept):
        files.write_json(path, [str(one.path) for one in measured])
    return [artifacts.load(Path(one)) for one in json.loads(path.read_text(encoding="utf-8"))]


# ── what is written ──────────────────────────────────────────────────────────────────────────────


def _make(settings: Settings, model: Artifact, terms: Terms, measured: list[Artifact], store: Store, out: Path) -> None:
    """The release, under its name when it is whole; what is known of it beside."""
    from alignment.release import card, folder, proof
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    unfinished = out / parts.FOLDER / RELEASE
    written = _write_weights(settings, model, terms, unfinished)
    tokens = folder.write_tokenizer(model, unfinished)
    folder.write_config(model, settings.dtype, unfinished)
    _write_terms(settings, model, terms, unfinished)
    proven = proof.prove(model, unfinished, settings.dtype, engine)
    files.write_atomic(unfinished / card.FILE, _card(settings, model, terms, measured, written, proven))
    folder.refuse_leaks(
        unfinished, {"the store": store.root.resolve(), "your home": Path.home(), "the working folder": Path.cwd()}
    )
    folder.write_sums(unfinished)
    files.sync_tree(unfinished)
    files.write_json(out / ABOUT, {"tokens": asdict(tokens), "weights": asdict(written), "proof": asdict(proven)})
    shutil.rmtree(out / RELEASE, ignore_errors=True)
    os.replace(unfinished, out / RELEASE)


def _write_weights(settings: Settings, model: Artifact, terms: Terms, unfinished: Path) -> Written:
    from alignment.gemma import heads
    from alignment.merging import layout
    from alignment.release import folder, weights

    source = layout.read(model.path)
    if heads.is_reward(model.path):
        heads.check_head(model.path, ours=model.kind == "reward")
    size = weights.size(source, settings.dtype)
    files.make_folder(unfinished)
    files.need_space(unfinished, size)
    statement = terms.statement(model, settings)
    metadata = {} if statement is None else {folder.MODIFICATION: statement}
    with console.progress("export", size >> 20, "MiB") as progress:
        return weights.convert(
            source,
            unfinished,
            unfinished.parent,
            settings.dtype,
            metadata,
            lambda done: progress.advance((done >> 20) - progress.done),
        )


def _write_terms(settings: Settings, model: Artifact, terms: Terms, unfinished: Path) -> None:
    """The licence; of Gemma's descendants the notice, the terms, and a statement in every file that can carry it."""
    from alignment.release import folder, gemma_terms, licences

    if terms.licence.text is not None:
        files.write_atomic(unfinished / licences.FILE, terms.licence.text)
    statement = terms.statement(model, settings)
    if statement is None or terms.gemmas is None:
        return
    modified = folder.state_modification(unfinished, statement)
    notice = gemma_terms.notice(statement, terms.origin.gemma, modified, [folder.VOCABULARY])
    files.write_atomic(unfinished / gemma_terms.NOTICE, notice)
    files.write_atomic(unfinished / gemma_terms.TERMS, terms.gemmas)


def _card(
    settings: Settings, model: Artifact, terms: Terms, measured: list[Artifact], written: Written, proven: Proof
) -> str:
    from alignment.gemma import core, heads
    from alignment.release import card, evaluations

    config = core.read_config(model.path)
    return card.write(
        card.Facts(
            name=settings.title or terms.nodes[-1].name.rpartition(":")[2],
            reward=heads.is_reward(model.path),
            family=config.model_type,
            shape=config.to_dict(),
            nodes=terms.nodes,
            provenance=terms.origin,
            licence=terms.licence,
            evaluations=evaluations.read(measured, model),
            dtype=settings.dtype,
            written=written,
            proof=proven,
            statement=terms.statement(model, settings),
        )
    )


def _link(release: Path, out: Path) -> None:
    """Make the artifact's folder itself a model's, so that it is found there by other stages and commands."""
    for path in release.iterdir():
        link = out / path.name
        if path.suffix in LINKED and not link.is_symlink():
            link.symlink_to(Path(RELEASE) / path.name)
