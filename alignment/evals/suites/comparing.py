"""Models, or the seeds of arms, beside each other on suites: what ``stage=evaluate`` tells of them.

``results.json`` has ``suites``: by name ``kind``, ``made_of`` and ``declared``, ``models`` and, where several are the
seeds of one, ``arms`` (every measure with its interval), ``groups`` (by group, label and model or arm) and
``differences`` (by model or arm: ``from``, ``measures`` and ``groups``). Of rewards there are ``wins`` (by model or
arm: ``over``, ``measures`` and ``groups``), the share of the prompts on which a score is higher than the other's.
Measures of a suite also stand among those of the model, as ``<suite>/<measure>``, where reports, trackers and the gate
find them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignment import files
from alignment.evals import versions
from alignment.evals.suites import kept
from alignment.evals.suites.kept import Kept, Told
from alignment.evals.suites.suite import Measure


def told(
    folders: Mapping[str, Path],
    names: Sequence[str] | None,
    against: versions.Against,
    confidence: float,
    seed: int,
) -> Told:
    """One suite, from the folders of ``stage=assess`` by the models' labels; ``names`` are those of arms."""
    own = {label: json.loads((folder / kept.RESULTS).read_text(encoding="utf-8")) for label, folder in folders.items()}
    first = next(iter(own.values()))
    found: Told = {
        "kind": first["kind"],
        "made_of": first["made_of"],
        "declared": first["declared"],
        "models": {
            label: kept.told(Kept.read(folder), confidence, seed)["measures"] for label, folder in folders.items()
        },
    }
    seeds = versions.seeds_of(list(folders), names)
    read = {arm: [Kept.read(folders[label]) for label in labels] for arm, labels in seeds.items()}
    arms = {arm: kept.averaged(some) for arm, some in read.items()}
    told_of = {arm: kept.told(one, confidence, seed) for arm, one in arms.items()}
    if len(arms) < len(folders):
        found["arms"] = {arm: one["measures"] for arm, one in told_of.items()}
    found["groups"] = _turned({arm: one["groups"] for arm, one in told_of.items()})
    found["differences"] = {
        arm: {"from": base} | kept.differences(arms[arm], arms[base], confidence, seed)
        for arm, base in versions.base_of(list(arms), against).items()
    }
    if first["kind"] == "rewards":
        found["wins"] = {
            arm: {"over": base} | kept.told(wins(read[arm], read[base]), confidence, seed)
            for arm, base in versions.base_of(list(arms), against).items()
        }
    return found


def wins(own: Sequence[Kept], base: Sequence[Kept]) -> Kept:
    """On which examples every score is higher than the base's (1), or the same (1/2): the mean over pairs of seeds.

    All of them have the same examples, in any order.
    """
    first = own[0]
    scores = tuple(one for one in first.measures if one.better == "higher" and one.name != "finished")
    values = {one.name: np.mean([_higher(first, a, b, one.name) for a in own for b in base], axis=0) for one in scores}
    measures = tuple(Measure(one.name, "higher", f"share on which {one.name} is higher", most=1) for one in scores)
    return Kept(measures, first.ids, first.units, values, first.groups)


def _higher(like: Kept, own: Kept, base: Kept, measure: str) -> np.ndarray:
    """1 where one value is above another, 1/2 where they are the same, NaN where one is not known (P)."""
    a_P, b_P = (_column(one, measure, like.ids) for one in (own, base))
    return np.where(np.isnan(a_P + b_P), np.nan, (a_P > b_P) + (a_P == b_P) / 2)


def _column(kept: Kept, measure: str, ids: Sequence[str]) -> np.ndarray:
    places = {name: place for place, name in enumerate(kept.ids)}
    return kept.values[measure][[places[name] for name in ids]]


def merged(results: Told, suites: Mapping[str, Told]) -> Told:
    """The results of an evaluation with those of its suites among the measures of its models."""
    found = {**results, "suites": dict(suites)}
    for name, suite in suites.items():
        for part in ("models", "arms"):
            for model, measures in suite.get(part, {}).items():
                of = found.setdefault(part, {}).setdefault(model, {})
                of |= {f"{name}/{measure}": one for measure, one in measures.items()}
        for model, one in suite["differences"].items():
            of = found["differences"].setdefault(model, {"from": one["from"], "measures": {}})
            of["measures"] |= {f"{name}/{measure}": value for measure, value in one["measures"].items()}
    return found


def write_examples(path: Path, folders: Mapping[str, Mapping[str, Path]]) -> None:
    """All examples of all suites and models in one table, ``suite`` and ``model`` before the rest, suite by suite."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    of = [
        (suite, model, folder / kept.EXAMPLES) for suite, models in folders.items() for model, folder in models.items()
    ]
    schema = pa.unify_schemas(
        [pa.schema([("suite", pa.string()), ("model", pa.string())]), *(pq.read_schema(file) for *_, file in of)]
    )
    beside = path.with_name(path.name + files.TEMPORARY)
    with pq.ParquetWriter(beside, schema, compression="zstd") as writer:
        for suite, model, file in of:
            for batch in pq.ParquetFile(file).iter_batches(kept.ROWS_A_BATCH):
                columns = {name: batch.column(name) for name in batch.schema.names}
                columns |= {"suite": pa.array([suite] * len(batch)), "model": pa.array([model] * len(batch))}
                nulls = {
                    name: pa.nulls(len(batch), kind) for name, kind in zip(schema.names, schema.types, strict=True)
                }
                writer.write_table(pa.table({name: columns.get(name, nulls[name]) for name in schema.names}, schema))
    beside.replace(path)


def _turned(groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Told:
    """By group and label, then by model."""
    found: Told = {}
    for model, of in groups.items():
        for group, labels in of.items():
            for label, measures in labels.items():
                found.setdefault(group, {}).setdefault(label, {})[model] = measures
    return found
