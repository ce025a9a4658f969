"""How a step ends: its record, then nothing more of how it was made, and last its run is told.

The order is that of what matters. From the record on the artifact is whole, whatever becomes of the rest; what a kill
leaves beside it goes when somebody uses it next.
"""

from __future__ import annotations

from collections.abc import Callable

from alignment import artifacts, console, files
from alignment.artifacts import Artifact, Outcome, Parent
from alignment.energy import meter
from alignment.energy.record import Stated
from alignment.plans.planned import Planned
from alignment.training import incidents, tracking


def finish(planned: Planned, inputs: dict[str, Artifact], outcome: Outcome, seconds: float, stated: Stated) -> Artifact:
    """Make an artifact of what a stage has written; the step's folder is held."""
    licences = {licence for artifact in inputs.values() for licence in artifact.licences} | set(outcome.licences)
    artifact = Artifact(
        path=planned.folder,
        kind=outcome.kind,
        stage=planned.step.stage,
        step=planned.step.name,
        fingerprint=planned.fingerprint,
        parents={
            key: Parent(spelling, inputs[key].fingerprint, str(inputs[key].path))
            for key, (spelling, _) in planned.inputs.items()
        },
        settings=planned.settings.model_dump(mode="json"),
        tokens=outcome.tokens,
        licences=tuple(sorted(licences)),
        metrics=dict(outcome.metrics),
        headline=outcome.headline,
        notes=dict(outcome.notes) | incidents.told(planned.folder),
        seconds=seconds,
        energy=meter.of(planned.folder, stated),
    )
    artifacts.finish_snapshots(artifact)
    finished = artifacts.finish(artifact)
    _clear(finished)
    tracking.conclude(finished)
    return finished


def cleared(artifact: Artifact, on_wait: Callable[[str], None], meanwhile: Callable[[], None]) -> Artifact:
    """A finished artifact without what a kill has left beside its record; nobody of this process holds its folder.

    Another process that does is waited for, as :func:`files.exclusive` does.
    """
    if artifacts.scaffolds(artifact.path):
        try:
            with files.exclusive(artifact.path, on_wait, meanwhile):
                # Who makes it anew has taken the record away first.
                if (artifact.path / artifacts.RECORD).is_file():
                    _clear(artifact)
        except OSError as error:
            _tell_left(artifact, error)
    return artifact


def _clear(artifact: Artifact) -> None:
    try:
        artifacts.clear(artifact.path)
    except OSError as error:
        _tell_left(artifact, error)


def _tell_left(artifact: Artifact, error: OSError) -> None:
    names = ", ".join(path.name for path in artifacts.scaffolds(artifact.path))
    console.say(f"{artifact.path} is whole; what it was made with cannot be removed: {names} ({error})", style="yellow")
