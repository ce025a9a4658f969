"""What evaluations, here and elsewhere, have measured of a candidate and of the best: the evidence for the gate.

Models are known by their fingerprints, whatever an evaluation calls them. Differences are taken prompt by prompt: those
of ``results.json``, or where that compares other models the same from ``answers.parquet``, and for the measures of a
suite (``<suite>/<measure>``) from ``examples.parquet``. Two evaluations made in the
same way count as one. Axes: P prompts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from alignment.artifacts import Artifact
from alignment.chat.types import Message, prompt_key
from alignment.errors import UserError, nearest
from alignment.evals import elsewhere, imported
from alignment.evals.gate import Better, Finding, Rule
from alignment.evals.imported import Model, Result
from alignment.evals.intervals import Bootstrap, Interval, mean_of_seeds, unpaired
from alignment.evals.suites.kept import interval_of

READ = "conversations"
"""Of a perplexity: the digest of what was read, which two models must share to be compared."""
RESULTS, ANSWERS, EXAMPLES = "results.json", "answers.parquet", "examples.parquet"
OF_MODELS = ("models", "names", "against", "imports")
"""Settings that say which models are measured and compared, and what others have measured of them."""
NOT_HOW = ("engine", "endpoint", "prompts", "conversations", "rewards", "reference")
"""Settings that change no number, and those that name inputs, which have fingerprints."""


class Column(NamedTuple):
    """A measure of one model on the prompts of an evaluation, NaN where a prompt has none; ``keys`` tell prompts."""

    ids: list[str]
    keys: list[str]
    values_P: np.ndarray


class Evaluation:
    """An evaluation that compared policies. Raises :class:`UserError` for an artifact that is none."""

    def __init__(self, artifact: Artifact) -> None:
        path = artifact.path / RESULTS
        self.artifact, self.name = artifact, artifact.step or artifact.path.name
        self.results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        parents = [key for key in artifact.parents if key.startswith("models.")]
        if "models" not in self.results or len(self.results["models"]) != len(parents):
            raise UserError(
                f"evaluations: {self.name}: measured no policies",
                cause=f"{path} tells of none." if parents else "Its record names no models.",
                remedy="Name results of stage=evaluate.",
            )
        self.confidence = float(self.results["confidence"])
        self._seed = int(artifact.settings.get("seed", 0))
        self._prompts: dict[str, Column] = {}

    @cached_property
    def models(self) -> dict[str, Model]:
        """All models by name, and the arms that several of them are the seeds of; in their order."""
        labels = list(self.results["models"])
        of = dict(zip(labels, (self._model(label, (place,)) for place, label in enumerate(labels)), strict=True))
        arms = {}
        for arm in self.results.get("arms", {}):
            places = tuple(place for place, label in enumerate(labels) if arm in (label, label.rpartition("#")[0]))
            arms[arm] = self._model(arm, places)
        return of | arms

    @property
    def compared(self) -> list[Model]:
        """The models that stand beside each other: arms where there are, in their order."""
        return [self.models[name] for name in self.results.get("arms", self.results["models"])]

    def name_of(self, model: Model) -> str | None:
        """What it calls a model, by its fingerprints; None for one that it did not measure."""
        alike = (name for name, one in self.models.items() if one.fingerprints == model.fingerprints)
        return next(alike, None)

    def told(self, name: str) -> dict[str, Mapping[str, Any]]:
        """The measures of a model or an arm, as results.json tells them."""
        return {**self.results["models"].get(name, {}), **self.results.get("arms", {}).get(name, {})}

    def shown(self, told: Mapping[str, Mapping[str, Any]], measure: str) -> Finding | None:
        """A measure as the evaluation itself tells it."""
        return Finding(self.name, interval_of(told[measure])) if measure in told else None

    def value(self, model: Model, measure: str) -> Finding | None:
        """A measure's value; None where it was not measured."""
        name = self.name_of(model)
        if name is None:
            return None
        column, told = self.column(name, measure), self.told(name)
        if measure in told:
            return self._finding(interval_of(told[measure]), column, examples=told[measure].get("examples"))
        return None if column is None else self._finding(self._mean(column), column)

    def difference(self, candidate: Model, best: Model, measure: str, other: Evaluation) -> Finding | None:
        """A measure of the candidate less that of the best as ``other`` measured it, which may be this evaluation."""
        name, base = self.name_of(candidate), other.name_of(best)
        if name is None or base is None:
            return None
        told = self.results.get("differences", {}).get(name, {}) if other is self else {}
        known = told.get("measures", {}).get(measure) if told.get("from") == base else None
        less = _less(self.column(name, measure), other.column(base, measure))
        if known is not None:
            paired = not measure.startswith(f"{elsewhere.NAME}/")
            return self._finding(interval_of(known), less, paired=paired, examples=known.get("examples"))
        if less is not None:
            return None if np.isnan(less.values_P).all() else self._finding(self._mean(less), less, paired=True)
        if other is not self and measure.startswith(f"{elsewhere.NAME}/"):
            return None  # Of the same source only where one evaluation has both.
        if self.told(name).get(measure, {}).get(READ) != other.told(base).get(measure, {}).get(READ):
            return None
        own, its = self.value(candidate, measure), other.value(best, measure)
        if own is None or its is None or own.interval is None or its.interval is None:
            return None
        counts = [one.prompts for one in (own, its) if one.prompts is not None]
        return Finding(self.name, unpaired(own.interval, its.interval), min(counts, default=None))

    def is_made_like(self, other: Evaluation) -> bool:
        """Whether both asked the same of their models: equal inputs, equal settings, but for the models."""
        return self._way == other._way

    def column(self, name: str, measure: str) -> Column | None:
        """A measure of a model on every prompt, of an arm that of the seeds that have it; None where it is not kept."""
        import pyarrow as pa

        if "/" in measure:
            return self._of_suite(name, *measure.split("/", 1))
        kind = self._kept.get(measure)
        number = kind is not None and (pa.types.is_floating(kind) or pa.types.is_integer(kind) or kind == pa.bool_())
        labels = [label for label in self.results["models"] if self._is_seed(label, name)]
        asked = [self._asked(label) for label in labels]
        if not number or not asked[0].ids or any(one.ids != asked[0].ids for one in asked):
            return None
        values = [self._read(label, [measure])[measure].cast(pa.float64()).to_numpy() for label in labels]
        return asked[0]._replace(values_P=mean_of_seeds(values))

    @property
    def directions(self) -> Iterator[tuple[str, Better | None]]:
        """Every measure of a suite, and whether more or less of it is better."""
        for suite, told in self.results.get("suites", {}).items():
            yield from ((f"{suite}/{one['name']}", one["better"]) for one in told["declared"])

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _of_suite(self, name: str, suite: str, measure: str) -> Column | None:
        """A measure of a suite on every example; None for one that is no mean over them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        declared = {one["name"]: one for one in self.results.get("suites", {}).get(suite, {}).get("declared", ())}
        path = self.artifact.path / EXAMPLES
        if (
            measure not in declared
            or declared[measure]["per"]
            or declared[measure]["exponential"]
            or suite == elsewhere.NAME
            or not path.is_file()
        ):
            return None
        found = []
        for label in (label for label in self.results["models"] if self._is_seed(label, name)):
            where = [("suite", "==", suite), ("model", "==", label)]
            table = pq.read_table(path, columns=["id", "unit", measure], filters=where).sort_by("id")
            values_P = table[measure].cast(pa.float64()).to_numpy()
            found.append(Column(table["id"].to_pylist(), table["unit"].to_pylist(), values_P))
        if any(one.ids != found[0].ids for one in found):
            return None
        return found[0]._replace(values_P=mean_of_seeds([one.values_P for one in found]))

    @cached_property
    def _kept(self) -> dict[str, Any]:
        """The columns of the answers that are kept, and their types."""
        import pyarrow.parquet as pq

        path = self.artifact.path / ANSWERS
        return {field.name: field.type for field in pq.read_schema(path)} if path.is_file() else {}

    def _read(self, label: str, columns: list[str]) -> Any:
        """Columns of one model's answers, a table."""
        import pyarrow.parquet as pq

        return pq.read_table(self.artifact.path / ANSWERS, columns=columns, filters=[("model", "==", label)])

    def _asked(self, label: str) -> Column:
        """The prompts that a model was asked, without values; grouped as the evaluation groups them."""
        if not self._kept:
            return Column([], [], np.empty(0))
        if label not in self._prompts:
            rows = self._read(label, ["id", "prompt"]).to_pylist()
            turns = [[Message(turn["role"], turn["content"]) for turn in row["prompt"]] for row in rows]
            self._prompts[label] = Column([row["id"] for row in rows], list(map(prompt_key, turns)), np.empty(0))
        return self._prompts[label]

    @cached_property
    def _way(self) -> tuple[Any, ...]:
        parents, suites = self.artifact.parents.items(), self.results.get("suites", {})
        inputs = {
            key: one.fingerprint for key, one in parents if key.partition(".")[0] not in ("models", "answers", "suites")
        }
        settings = {key: value for key, value in self.artifact.settings.items() if key not in (*OF_MODELS, *NOT_HOW)}
        made_of = {name: one["made_of"] for name, one in suites.items() if one["kind"] != elsewhere.KIND}
        return inputs, settings, made_of, self.artifact.stage

    def _model(self, name: str, places: Sequence[int]) -> Model:
        parents = [self.artifact.parents[f"models.{place}"] for place in places]
        return Model.of(name, [(one.fingerprint, one.reference, one.path) for one in parents])

    def _is_seed(self, label: str, name: str) -> bool:
        return label == name or (name in self.results.get("arms", {}) and label.rpartition("#")[0] == name)

    def _mean(self, column: Column) -> Interval:
        there_P = ~np.isnan(column.values_P)
        keys = [key for key, there in zip(column.keys, there_P, strict=True) if there]
        values_PK = column.values_P[there_P, None]
        (found,) = Bootstrap(keys, self.confidence, self._seed).ratios(values_PK, np.ones_like(values_PK))
        assert found is not None, "a mean of values has an interval"
        return found

    def _finding(
        self, interval: Interval, column: Column | None, *, paired: bool = False, examples: int | None = None
    ) -> Finding:
        """``examples`` count for a measure without a column: one that is no mean, such as a ratio of a suite.

        Where its resamples are all equal nothing bounds what others would have been, and so its interval.
        """
        if column is None:
            if interval.low == interval.high:
                interval = Interval(interval.estimate, -math.inf, math.inf)
            return Finding(self.name, interval, examples, paired)
        there_P, least = ~np.isnan(column.values_P), -1.0 if paired else 0.0
        resamples, seen_P = Bootstrap(column.keys, self.confidence, self._seed), column.values_P[there_P]
        if len(seen_P) and least <= seen_P.min() and seen_P.max() <= 1:
            interval = resamples.bounded(interval, there_P, column.values_P, least, 1.0)
        return Finding(self.name, interval, resamples.groups_of(there_P), paired)


class Evidence:
    """Evaluations and imported results, and the candidate and the best among the models that they measured."""

    def __init__(
        self, evaluations: Sequence[Evaluation], imports: Sequence[Result], candidate: str | None, best: str | None
    ) -> None:
        """Null takes the first evaluation's last model and its first. Raises :class:`UserError` for unknown ones."""
        self.evaluations, self.imports = evaluations, imports
        models = evaluations[0].compared
        self.candidate = models[-1] if candidate is None else _named(candidate, "candidate", evaluations)
        self.best = models[0] if best is None else _named(best, "best", evaluations)
        for one in evaluations:
            self._check(one)

    @property
    def alone(self) -> bool:
        """Whether there is no other model than the candidate."""
        return self.candidate.fingerprints == self.best.fingerprints

    def findings(self, rule: Rule) -> list[Finding]:
        """What is known of a rule's measure: one finding from each place where it was measured, or one without.

        Raises :class:`UserError` for a rule that would compare the candidate with itself.
        """
        if rule.compares and self.alone:
            known = list(dict.fromkeys(name for one in self.evaluations for name in one.models))
            raise UserError(
                f"{rule.measure} {rule.kind}: {self.candidate.name} would be compared with itself",
                cause="candidate and best are the same model.",
                remedy=f"Say candidate=… and best=…, of {', '.join(known)}.",
            )
        found = [*self._differences(rule.measure)] if rule.compares else [*self._values(self.candidate, rule.measure)]
        return found or [Finding("", None, why=self._why(rule))]

    def table(self) -> Iterator[tuple[str, Finding | None, Finding | None, str]]:
        """Every measure that there is: its name, what it is of the best and of the candidate, and where from."""
        models = (self.best, self.candidate)
        for one in self.evaluations:
            best, candidate = ({} if name is None else one.told(name) for name in map(one.name_of, models))
            for measure in {**best, **candidate}:
                yield measure, one.shown(best, measure), one.shown(candidate, measure), one.name
        found = [{(one.measure, one.source): _of(one) for one in self._imported(model)} for model in models]
        for key, other in {**found[0], **found[1]}.items():
            yield key[0], found[0].get(key), found[1].get(key), other.where

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _values(self, model: Model, measure: str) -> Iterator[Finding]:
        found = (one.value(model, measure) for one in self.evaluations)
        yield from (one for one in found if one is not None)
        yield from (_of(one) for one in self._imported(model) if one.measure == measure)

    def _differences(self, measure: str) -> Iterator[Finding]:
        for one in self.evaluations:
            if one.value(self.candidate, measure) is None:
                continue
            partner = next((other for other in (one, *self._like(one)) if other.value(self.best, measure)), None)
            found = partner and one.difference(self.candidate, self.best, measure, partner)
            yield found or Finding(one.name, None, why=f"not measured of {self.best.name} in the same way")
        yield from self._imported_differences(measure)

    def _imported_differences(self, measure: str) -> Iterator[Finding]:
        best = {one.source: one for one in self._imported(self.best) if one.measure == measure}
        for one in self._imported(self.candidate):
            if one.measure != measure:
                continue
            other = best.get(one.source)
            if other is None:
                yield Finding(one.where, None, why=f"not measured of {self.best.name} by the same source")
            else:
                counts = [count for count in (one.n, other.n) if count is not None]
                yield Finding(one.where, unpaired(one.interval, other.interval), min(counts, default=None))

    def _like(self, evaluation: Evaluation) -> Iterator[Evaluation]:
        return (one for one in self.evaluations if one is not evaluation and one.is_made_like(evaluation))

    def _imported(self, model: Model) -> list[Result]:
        return imported.of(model, self.imports)

    def _check(self, evaluation: Evaluation) -> None:
        """Nothing is left aside: what measured the best has the candidate beside it, here or in one made like it."""
        among = [evaluation, *self._like(evaluation)]
        if all(one.name_of(self.candidate) is None for one in among):
            raise UserError(
                f"evaluations: {evaluation.name} did not measure {self.candidate.name}",
                cause=f"It measured {', '.join(evaluation.models)}, and no other was made in the same way.",
                remedy="Evaluate the candidate in the same way, or leave that evaluation out.",
            )

    def _why(self, rule: Rule) -> str:
        known = sorted({measure for measure, *_ in self.table()})
        others = sorted({one.model for one in self.imports if one.measure == rule.measure})
        told = f"not measured of {self.candidate.name}"
        return f"{told}, only of {', '.join(others)}" if others else f"{told}. {nearest(rule.measure, known)}"


def _named(said: str, key: str, evaluations: Sequence[Evaluation]) -> Model:
    """The model that is called so. Raises :class:`UserError` where there is none, or several are."""
    found: Mapping[tuple[str, ...], Model] = {
        model.fingerprints: model for one in evaluations for model in one.models.values() if model.is_called(said)
    }
    if not found:
        known = list(dict.fromkeys(name for one in evaluations for name in one.models))
        raise UserError(f"{key}={said}: no evaluation has measured it", remedy=nearest(said, known))
    if len(found) > 1:
        raise UserError(
            f"{key}={said}: {len(found)} different models are called so",
            remedy=f"Say its fingerprint: {', '.join(one[0][:16] for one in found)}.",
        )
    return next(iter(found.values()))


def _less(column: Column | None, other: Column | None) -> Column | None:
    """The difference on every prompt; None where either is not kept, or they were not asked the same prompts."""
    if column is None or other is None or column.ids != other.ids:
        return None
    return column._replace(values_P=column.values_P - other.values_P)


def _of(result: Result) -> Finding:
    return Finding(result.where, result.interval, result.n)
