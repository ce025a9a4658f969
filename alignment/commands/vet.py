"""Have a person judge answers: export a blinded sample with dataset=…, import what they said with verdicts=…."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignment import console, files
from alignment.artifacts import Artifact
from alignment.chat.types import Conversation, Message
from alignment.errors import UserError, nearest
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, place, reference
from alignment.store import Store

if TYPE_CHECKING:
    from alignment.evals.intervals import Interval

COLUMNS = ("id", "prompt", "answer", "verdict", "comment")
VERDICTS = ("good", "bad", "unsure")
FOLDER = "vet"
"""Where keys and results lie in the store."""
ID = re.compile(r"(v[0-9a-f]{8})-\d+")
"""An answer's id: the key's name and a number. The letter keeps spreadsheets from reading ``1234567e-001``."""
CELL_LIMIT = 32_767
"""Characters that a cell holds in the common spreadsheet programs."""
MISTAKES_SHOWN = 5
SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


class Settings(StrictSettings):
    """``stage=vet``. Either ``dataset`` is given, to export, or ``verdicts``, to import."""

    dataset: str | None = reference("conversations whose answers people wrote; null imports verdicts")
    model_dataset: str | None = reference("conversations whose answers a model wrote, half of the sample; or null")
    split: Literal["train", "valid", "test"] = identity("of both datasets")
    n: int = identity("answers to be judged", ge=2)
    out: str | None = place("the file to write for the judge, .csv or .jsonl")
    verdicts: str | None = place("the file as it came back from the judge; null exports")
    confidence: float = identity("of the intervals", gt=0, lt=1)
    seed: int = identity("of the sample and its order", ge=0)


class Line(NamedTuple):
    """A row of the judge's file: where it stands (``file:line``), its id, its cells, and what the judge wrote."""

    where: str
    id: str
    cells: dict[str, str]
    verdict: str


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> None:
    """Export where ``dataset`` is given, import where ``verdicts`` is. Raises :class:`UserError` otherwise."""
    if settings.verdicts is not None and settings.dataset is None and settings.model_dataset is None:
        take_in(files.typed(settings.verdicts), store, settings.confidence)
    elif settings.verdicts is None and settings.dataset is not None:
        hand_out(settings, inputs, store)
    else:
        raise UserError(
            "stage=vet either exports a sample of a dataset or imports verdicts",
            cause="Both were asked for." if settings.verdicts is not None else "No dataset was named.",
            remedy="Say dataset=latest:data out=vet.csv, and when that is filled in: verdicts=vet.csv.",
        )


# ── out ──────────────────────────────────────────────────────────────────────────────────────────


def hand_out(settings: Settings, inputs: Mapping[str, Artifact], store: Store) -> None:
    """Write the judge's file, which tells no origin, and the key to it, which stays in the store."""
    from alignment.data import spreadsheet

    out = _target(settings.out)
    drawn = _draw(settings, inputs)
    digests = [_digest(*_shown(row)) for _, row in drawn]
    name = "v" + files.digest_json([settings.seed, [origin for origin, _ in drawn], digests])[:8]
    ids = [f"{name}-{number:03d}" for number in range(1, len(drawn) + 1)]
    key = {
        "name": name,
        "seed": settings.seed,
        "split": settings.split,
        "datasets": {
            origin: {"path": str(inputs[source].path), "fingerprint": inputs[source].fingerprint}
            for origin, source in (("human", "dataset"), ("model", "model_dataset"))
            if source in inputs
        },
        "rows": {
            one: {"origin": origin, "row": row.id, "digest": digest}
            for one, (origin, row), digest in zip(ids, drawn, digests, strict=True)
        },
    }
    _write_private(store.root / FOLDER / f"{name}.key.json", key)
    rows = [(one, *_shown(row), "", "") for one, (_, row) in zip(ids, drawn, strict=True)]
    spreadsheet.write_rows(out, COLUMNS, [dict(zip(COLUMNS, row, strict=True)) for row in rows])
    console.say(f"{out}: {len(drawn):,} answers to judge; neither order nor ids tell where they come from", style="")
    cut = sum(max(map(len, row)) > CELL_LIMIT for row in rows)
    if cut and out.suffix == ".csv":
        told = f"{cut:,} rows are longer than the {CELL_LIMIT:,} characters that many spreadsheets keep of a cell"
        console.say(f"{told}: a name that ends with .jsonl is safer", style="yellow")
    console.say(f"Write {_listed(VERDICTS)} into the column verdict; empty means not judged. Then:", style="")
    back = f"store={shlex.quote(str(store.root))} verdicts={shlex.quote(str(out))}"
    console.say(f"  python -m alignment.run stage=vet {back}", style="")


def _draw(settings: Settings, inputs: Mapping[str, Artifact]) -> list[tuple[str, Conversation]]:
    """The sample with its origins, in the order in which it is shown: that of a hash of what is shown."""
    model = inputs.get("model_dataset")
    if model is not None and model.fingerprint == inputs["dataset"].fingerprint:
        raise UserError(
            f"model_dataset={settings.model_dataset}: is the same as dataset",
            remedy="Name a dataset whose answers a model wrote, or null.",
        )
    by_models = settings.n // 2 if model is not None else 0
    rows = _sample(inputs["dataset"], settings.split, settings.n - by_models, settings.seed)
    drawn = [("human", row) for row in rows]
    if model is not None:
        drawn += [("model", row) for row in _sample(model, settings.split, by_models, settings.seed)]
    return sorted(drawn, key=lambda pair: (_hash(settings.seed, "order", *_shown(pair[1])), pair[0]))


def _sample(artifact: Artifact, split: Literal["train", "valid", "test"], count: int, seed: int) -> list[Conversation]:
    """``count`` rows of different content, whatever the order of the dataset; no more of them are held at once."""
    from alignment.data import store as datasets

    kind = datasets.card(artifact.need("dataset").path)["kind"]
    if kind != "conversations":
        raise UserError(
            f"{artifact.path}: holds {kind}", remedy="Name a dataset of conversations; their last answers are judged."
        )
    held: dict[str, Conversation] = {}
    last = ""
    for row in datasets.stream(artifact.path, split):
        assert isinstance(row, Conversation)
        rank = _hash(seed, *_shown(row))
        if rank not in held and (len(held) < count or rank < last):
            if len(held) == count:
                del held[last]
            held[rank] = row
            last = max(held)
    if len(held) < count:
        raise UserError(
            f"n: {count:,} answers are wanted of {split} in {artifact.path}, which has {len(held):,} different ones",
            remedy="Ask for fewer with n=…, or choose another split.",
        )
    return list(held.values())


def _target(out: str | None) -> Path:
    """Where to export to. Raises :class:`UserError` for a file that exists."""
    path = files.typed(_known_suffix("out", out))
    if path.exists():
        raise UserError(
            f"out={out}: is there already",
            cause="It may hold verdicts.",
            remedy="Choose another name, or move it away.",
        )
    return path


def _known_suffix(key: str, spelling: str | None) -> str:
    """The name of a file whose suffix tells its format, refused before any work is done where it does not."""
    if spelling is None or not spelling.endswith((".csv", ".jsonl")):
        raise UserError(f"{key}={spelling or 'null'}: the name tells the format", remedy="End it with .csv or .jsonl.")
    return spelling


def _shown(row: Conversation) -> tuple[str, str]:
    """Prompt and answer as the judge reads them; speakers are named where the prompt is more than one turn."""
    *before, answer = row.messages
    return _dialogue(before), answer.content


def _dialogue(turns: Sequence[Message]) -> str:
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{SPEAKERS[turn.role]}: {turn.content}" for turn in turns)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _digest(prompt: str, answer: str) -> str:
    """Of what was shown, so that an edit is noticed; how a program ends lines is no edit."""
    return _hash(*(told.replace("\r\n", "\n").replace("\r", "\n") for told in (prompt, answer)))


def _write_private(path: Path, value: Any) -> None:
    """Write JSON that its owner alone can read: it tells whose answer each one is."""
    files.make_folder(path.parent)
    told = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    files.write_atomic(path, told + "\n", mode=0o600)


# ── back in ──────────────────────────────────────────────────────────────────────────────────────


def take_in(path: Path, store: Store, confidence: float) -> None:
    """Check a judge's file against its key, say how often each origin was good, and keep that beside the key."""
    from alignment.evals.intervals import unpaired

    lines = _lines(path)
    key = _key_of(path, lines, store)
    _check(path, lines, key["rows"])
    verdicts = {line.id: line.verdict for line in lines}
    judged: dict[str, Counter[str]] = {origin: Counter() for origin in key["datasets"]}
    for one, row in key["rows"].items():
        judged[row["origin"]][verdicts.get(one, "")] += 1
    if not any(verdicts.values()):
        raise UserError(f"{path}: no row has a verdict", remedy=f"Write {_listed(VERDICTS)} into the column verdict.")
    shares = {origin: share(counts["good"], counts["bad"], confidence) for origin, counts in judged.items()}
    human, model = shares["human"], shares.get("model")
    gap = None if human is None or model is None else unpaired(human, model)
    result = {
        "name": key["name"],
        "file": str(path),
        "digest": files.digest_file(path),
        "confidence": confidence,
        "origins": {
            origin: {
                **{verdict: counts[verdict] for verdict in VERDICTS},
                "not judged": counts[""],
                "share_good": _numbers(shares[origin]),
            }
            for origin, counts in judged.items()
        },
        "human_minus_model": _numbers(gap),
        "rows": {
            line.id: {**key["rows"][line.id], "verdict": line.verdict, "comment": line.cells["comment"]}
            for line in lines
        },
    }
    beside = store.root / FOLDER / f"{key['name']}.{path.stem}.result.json"
    _write_private(beside, result)
    _tell(judged, shares, gap, confidence, beside)


def share(good: int, bad: int, confidence: float) -> Interval | None:
    """The share of good among the answers judged good or bad, with Wilson's interval (Wilson 1927).

    Unlike a bootstrap's, it has a width where all verdicts agree. None where there is no such answer.
    """
    from alignment.evals.intervals import Interval

    n = good + bad
    if not n:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    estimate, scale = good / n, 1 + z * z / n
    middle = (estimate + z * z / (2 * n)) / scale
    half = z * math.sqrt(estimate * (1 - estimate) / n + z * z / (4 * n * n)) / scale
    # At 0 and at 1 the bound is the estimate itself, which rounding would miss by a hair.
    return Interval(estimate, min(max(0.0, middle - half), estimate), max(min(1.0, middle + half), estimate))


def _lines(path: Path) -> list[Line]:
    """The judge's file. Case, and spaces around an id or a verdict, do not matter; columns may have been added."""
    from alignment.data import spreadsheet

    _known_suffix("verdicts", str(path))
    lines = [
        Line(f"{path}:{number}", cells["id"].strip(), cells, cells["verdict"].strip().lower())
        for number, cells in spreadsheet.read_rows(path, COLUMNS)
    ]
    if not lines:
        raise UserError(f"{path}: holds no rows", remedy="Give the file that was exported, filled in.")
    return lines


def _key_of(path: Path, lines: Sequence[Line], store: Store) -> dict[str, Any]:
    """The key that most ids belong to. Raises :class:`UserError` where the store has none for them."""
    names = Counter(found.group(1) for line in lines if (found := ID.fullmatch(line.id)))
    folder = store.root / FOLDER
    known = sorted(key.name.removesuffix(".key.json") for key in folder.glob("*.key.json"))
    name = names.most_common(1)[0][0] if names else lines[0].id
    if name not in known:
        raise UserError(
            f"{lines[0].where}: {folder} has no key for the id {lines[0].id!r}",
            cause=f"The ids of {path} were given by another export, or were edited.",
            remedy=f"Name the store it was exported from with store=<folder>. {nearest(name, known)}",
        )
    return json.loads((folder / f"{name}.key.json").read_text(encoding="utf-8"))


def _check(path: Path, lines: Sequence[Line], rows: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for rows that are not the exported ones or have no such verdict, naming a few."""
    mistakes: list[str] = []
    first: dict[str, str] = {}
    for line in lines:
        one, verdict = line.id, line.verdict
        if one not in rows:
            mistakes.append(f"{line.where}: id {one!r} was not exported")
        elif one in first:
            mistakes.append(f"{line.where}: id {one!r} stands at {first[one]} already")
        elif _digest(line.cells["prompt"], line.cells["answer"]) != rows[one]["digest"]:
            mistakes.append(f"{line.where}: prompt or answer of {one} was edited")
        elif verdict not in ("", *VERDICTS):
            mistakes.append(f"{line.where}: verdict={verdict!r} is none of {', '.join(VERDICTS)}")
        first.setdefault(one, line.where)
    if mistakes:
        more = len(mistakes) - MISTAKES_SHOWN
        shown = "\n".join(mistakes[:MISTAKES_SHOWN]) + (f"\nand {more:,} more" if more > 0 else "")
        raise UserError(
            f"{path}: {len(mistakes):,} of {len(lines):,} rows cannot be taken",
            cause=shown,
            remedy="Only verdict and comment are filled in; restore id, prompt and answer from the export. "
            f"A verdict is {_listed(VERDICTS)}, or empty.",
        )


def _tell(
    judged: Mapping[str, Counter[str]],
    shares: Mapping[str, Interval | None],
    gap: Interval | None,
    confidence: float,
    beside: Path,
) -> None:
    rows = [
        (origin, *(f"{counts[verdict]:,}" for verdict in (*VERDICTS, "")), *_percent(shares[origin]))
        for origin, counts in judged.items()
    ]
    numeric = (*VERDICTS, "not judged", "share good")
    columns = ("answers by", *numeric, "interval")
    console.table(f"verdicts, with {confidence:.0%} intervals", columns, rows, right=numeric)
    if gap is not None:
        estimate, bounds = _percent(gap, signed=True)
        told = "holds no difference" if gap.low <= 0 <= gap.high else "holds no 0"
        console.say(f"human minus model: {estimate} ({bounds}), which {told}", style="")
    console.say(f"written to {beside}", style="dim")


def _percent(interval: Interval | None, *, signed: bool = False) -> tuple[str, str]:
    if interval is None:
        return "–", "–"
    sign = "+" if signed else ""
    return f"{interval.estimate:{sign}.1%}", f"{interval.low:{sign}.1%} … {interval.high:{sign}.1%}"


def _numbers(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else interval._asdict()


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
