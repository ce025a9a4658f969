"""Tasks of lm-evaluation-harness on this model: its prompts, its metrics, our examples, intervals and differences.

The harness is an extra (``pip install alignment[lm-eval]``). Its tasks read datasets from the hub; ``include`` names a
folder of one's own, whose YAML may name files instead. A metric that is a number of every example becomes a measure,
and is told by task; what the harness computes of all examples at once (F1, perplexity of words …) stands in the notes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment.artifacts import Artifact
from alignment.errors import UserError, nearest
from alignment.evals.suites.subject import Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.files import typed
from alignment.sampling.decoding import Decoding
from alignment.settings import identity, text

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

OVER_TEXT = {"word_perplexity", "byte_perplexity", "bits_per_byte"}
"""Metrics whose examples are (log-likelihood, words or bytes)."""


class Settings(Suite):
    """Which tasks, and how they are asked."""

    tasks: list[str] = text("names of tasks or groups of the harness, or of the folder `include`", min_length=1)
    include: str | None = text("a folder with tasks of one's own, searched first; its Python runs; null for none")
    count: int | None = identity("examples of every task at most; null takes all", ge=1)
    prompting: Literal["chat", "raw"] = identity("whether what is asked is put as turns of a chat")
    shots: int | None = identity("worked examples; null takes what the task says", ge=0)
    decoding: Decoding | None = identity("how answers are drawn; null: as each task says")
    seed: int = identity("of the worked examples, and of draws that a task asks for", ge=0)


def sources(settings: Settings) -> list[Path]:
    """The files of one's own tasks. Raises :class:`UserError` where their folder is not there."""
    if settings.include is None:
        return []
    folder = typed(settings.include)
    if not folder.is_dir():
        raise UserError(
            f"suite.include={settings.include}: there is no such folder",
            remedy="Name the folder that holds the YAML of your tasks, or suite.include=null for the harness's own.",
        )
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")


def examine(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> Examined:
    """Run the tasks. Raises :class:`UserError` where the harness, a task or its data is not there."""
    if find_spec("lm_eval") is None:
        raise UserError(
            "suite.kind=lm_eval: lm-evaluation-harness is not installed",
            cause="It is an extra of this project.",
            remedy="pip install 'alignment[lm-eval]', with constraints.txt.",
        )
    subject.need_here()
    if settings.prompting == "chat":
        subject.need_chat("ask in text: suite.prompting=raw")
    found = _evaluated(settings, subject)
    measures = tuple(_measures(found))
    examples = [one for task, samples in sorted(found["samples"].items()) for one in _examples(task, samples)]
    if not measures:
        raise UserError(
            f"suite.tasks={settings.tasks}: no metric of theirs is a number of every example",
            remedy="Add a task that has one, such as acc or exact_match.",
        )
    notes = {"versions": dict(found["versions"]), "shots": dict(found["n-shot"]), "results": _plain(found["results"])}
    return Examined(measures, examples, notes)


def _evaluated(settings: Settings, subject: Subject) -> dict[str, Any]:
    """The harness's own results, with every example."""
    from lm_eval import simple_evaluate

    from alignment.evals.suites.harness import Examinee

    if settings.decoding is not None and settings.decoding.samples != 1:
        raise UserError(
            f"suite.decoding.samples={settings.decoding.samples}: the harness takes one answer", remedy="Say samples=1."
        )
    manager = _manager(settings)
    try:
        found = simple_evaluate(
            model=Examinee(subject, settings.decoding, settings.seed),
            tasks=list(settings.tasks),
            task_manager=manager,
            num_fewshot=settings.shots,
            limit=settings.count,
            bootstrap_iters=0,
            apply_chat_template=settings.prompting == "chat",
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )
    except UserError:  # ours, said while the harness asked: it is a ValueError, and has a remedy of its own
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "marked as unsafe" in str(error):
            raise UserError(
                f"suite.tasks={settings.tasks}: runs what the model writes as code",
                cause="Nothing here executes what a model has written: there is no sandbox around it.",
                remedy="Run the task in a sandbox of your own, and import its results: docs/evaluation.md.",
            ) from error
        raise UserError(
            f"suite.tasks={settings.tasks}: the harness cannot run them",
            cause=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="Tasks of the harness fetch their data from the hub: check the network and HF_TOKEN; those of a "
            "folder of yours read the files that their YAML names.",
        ) from error
    assert found is not None, "one process asks, and gets the results"
    return dict(found)


def _manager(settings: Settings) -> TaskManager:
    """Who finds tasks. The harness's own, of which there are 14,000, are read only where one is asked for."""
    from lm_eval.tasks import TaskManager

    if settings.include is not None:
        folder = typed(settings.include)
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if set(settings.tasks) <= set(own.all_tasks):
            return own
        manager = TaskManager(include_path=str(folder))
    else:
        manager = TaskManager()
    for name in settings.tasks:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise UserError(
                f"suite.tasks: the harness has no task {name}", remedy=nearest(name, list(manager.all_tasks))
            )
    return manager


def _examples(task: str, samples: Iterable[Mapping[str, Any]]) -> Iterator[Example]:
    """An example for each document; what several filters make of one answer are measures of their own."""
    rows: dict[int, tuple[dict[str, float], Mapping[str, Any]]] = {}
    for sample in samples:
        values, _ = rows.setdefault(sample["doc_id"], ({}, sample))
        for metric in sample["metrics"]:
            values |= _values(_named(metric, sample["filter"]), metric, sample[metric])
    for number, (values, sample) in sorted(rows.items()):
        name = f"{task}:{number}"
        shown = {
            "asked": [str(part)[:4_000] for part in sample["arguments"][0][:1]],
            "target": str(sample["target"]),
            "answers": [str(one) for one in sample["filtered_resps"]],
        }
        yield Example(name, name, values, {"task": task}, shown)


def _values(name: str, metric: str, value: Any) -> dict[str, float]:
    """What a metric says of one example; nothing where it is no number, or not defined."""
    if metric in OVER_TEXT:
        likelihood, below = value
        over = below * math.log(2) if metric == "bits_per_byte" else below
        return {name: -float(likelihood), f"{name}_over": float(over)}
    if isinstance(value, bool | int | float) or getattr(value, "shape", None) == ():
        return {name: float(value)} if math.isfinite(float(value)) else {}
    return {}


def _measures(found: Mapping[str, Any]) -> Iterator[Measure]:
    """The metrics of all tasks that are numbers of examples, in the order in which they are met."""
    seen: dict[str, Measure] = {}
    for task, samples in sorted(found["samples"].items()):
        better = found["higher_is_better"].get(task, {})
        for sample in samples:
            for metric in sample["metrics"]:
                name = _named(metric, sample["filter"])
                if name in seen or not _values(name, metric, sample[metric]):
                    continue
                way = {True: "higher", False: "lower"}.get(better.get(metric))
                over = f"{name}_over" if metric in OVER_TEXT else None
                seen[name] = Measure(
                    name,
                    way,  # type: ignore[arg-type]
                    f"{metric} of the harness" + ("" if sample["filter"] == "none" else f", {sample['filter']}"),
                    per=over,
                    exponential=metric in OVER_TEXT and metric != "bits_per_byte",
                )
                if over is not None:
                    seen[over] = Measure(over, None, "what it is divided by")
    yield from seen.values()


def _named(metric: str, filtered: str) -> str:
    """``acc``, or ``exact_match_strict-match`` where a filter has a name."""
    return metric if filtered == "none" else f"{metric}_{filtered}"


def _plain(value: Any) -> Any:
    """As JSON has it; what is no number, text, list or mapping as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else str(value)
