"""What a side of ``benchmarks/rl.py`` is given and what it tells, as JSON files.

Only the standard library is needed here: the peers' own environments import it too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean


@dataclass(frozen=True)
class Job:
    """Everything that the sides share. Folders are plain Hugging Face directories with a tokenizer in them."""

    policy: str
    reward: str
    questions: list[str]
    """What a user says, in one turn."""
    prompts: list[list[int]]
    """The same as ids, all of one length."""
    batch: int
    """Answers an update: one epoch, one optimiser step."""
    samples: int
    """Answers to each prompt of a batch."""
    answer_tokens: int
    stop_id: int | None
    """The id that ends an answer; None where every answer is to have ``answer_tokens``."""
    updates: int
    """Those that are timed; one more goes before them, to warm up."""
    threads: int
    bf16: bool
    learning_rate: float
    beta: float
    seed: int

    @classmethod
    def read(cls, path: str) -> Job:
        """What :meth:`write` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class Result:
    """What a side did in the updates that are timed."""

    seconds: float
    tokens: float
    """The mean number of tokens drawn for an answer."""
    phases: dict[str, float]
    """Seconds an update, where the side knows its phases."""
    versions: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Result:
        """What :meth:`Laps.tell` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass
class Laps:
    """What is noted at the end of every update."""

    ends: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)

    def end(self) -> None:
        """An update ends now."""
        self.ends.append(time.perf_counter())

    def tell(self, job: Job, path: str, libraries: Sequence[str]) -> None:
        """Write the :class:`Result`: from the end of the first update, which warmed up, to the end of the last."""
        for noted in (self.ends, self.tokens):
            assert len(noted) == job.updates + 1, f"{len(noted)} updates instead of {job.updates + 1}"
        names = self.phases[0] if self.phases else ()
        result = Result(
            seconds=self.ends[-1] - self.ends[0],
            tokens=fmean(self.tokens[1:]),
            phases={name: fmean(row[name] for row in self.phases[1:]) for name in names},
            versions={name: version(name) for name in libraries},
        )
        Path(path).write_text(json.dumps(asdict(result)), encoding="utf-8")
