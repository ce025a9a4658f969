"""Serve a reward model over HTTP: stage=serve target=<reward model>."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignment import console, files
from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.scoring.opening import ClassifierReading
from alignment.scoring.remote import TOKEN, token_from_environment
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, place, reference
from alignment.store import Store
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.scoring.scorer import Scorer
    from alignment.scoring.service import Queue, Service

MIB = 2**20


class Settings(StrictSettings):
    """``stage=serve``. A token in the environment (ALIGNMENT_SERVE_TOKEN) is then asked of every request; without one
    no other machine is let in."""

    target: str = reference("the reward model to serve, or a classifier")
    classifier: ClassifierReading = execution("how a classifier is read")
    host: str = place("the address to listen at; 0.0.0.0 lets other machines in, and takes a token")
    port: int = execution("where to listen; 0 takes a free port", ge=0, le=65535)
    queue: int = execution("dialogues that may wait; a request that finds no room is asked to come again", ge=1)
    batch: int = execution("dialogues of several requests that are scored together", ge=1)
    max_body: int = execution("MiB of a request at most", ge=1, le=1024)
    timeout: float = execution("seconds after which a request that still waits is asked to come again", gt=0)
    engine: EngineSettings = execution("where and how it runs")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, and refuse before anything is made to be open to other machines without a token."""
        settings: Settings = super().parse(values, where)
        if token_from_environment() is None and not _is_loopback(settings.host):
            raise UserError(
                f"host={settings.host}: other machines could reach it, and {TOKEN} is not set",
                cause="Whoever reaches a server without a token may ask it what they like.",
                remedy=f"`export {TOKEN}=…`, here and for those who ask, or say host=127.0.0.1.",
            )
        return settings


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> None:
    """Serve until SIGINT or SIGTERM; what waits then is finished."""
    import asyncio

    from alignment.scoring.opening import open_scorer
    from alignment.training.engine import resolve

    token, target, reading = token_from_environment(), inputs["target"], settings.classifier
    if target.kind == "remote":
        raise UserError(f"{target.step}: is served already", remedy="Give its address to whoever asks.")
    scorer = open_scorer(target, resolve(settings.engine), None, label=reading.label, text=reading.text)
    asyncio.run(_serve(settings, target, scorer, token))


async def _serve(settings: Settings, target: Artifact, scorer: Scorer, token: str | None) -> None:
    import asyncio

    from alignment.scoring import service

    queue = service.Queue(scorer, settings.queue, settings.batch)
    stop = asyncio.Event()
    service.stop_at_signals(stop)

    def ready(address: str) -> None:
        console.say(f"serving {scorer.name} at {address}; Ctrl-C finishes what waits, and stops", style="")

    served = _service(settings, target, scorer, queue, token)
    await service.serve(served, settings.host, settings.port, stop=stop, ready=ready)
    console.say(f"stopped; {queue.scored:,} dialogues were scored", style="")


def _service(settings: Settings, target: Artifact, scorer: Scorer, queue: Queue, token: str | None) -> Service:
    from alignment.data import seen
    from alignment.scoring.reward_model import RewardScorer
    from alignment.scoring.service import About, Service

    ours = scorer if isinstance(scorer, RewardScorer) else None
    about = About(
        name=scorer.name,
        fingerprint=_fingerprint(target, scorer, settings.classifier),
        kind=target.kind,
        absolute=scorer.absolute,
        centre=ours.scale.centre if ours else 0.0,
        schema=ours.scale.schema if ours else None,
        most_dialogues=min(settings.batch, settings.queue),
        most_bytes=settings.max_body * MIB,
    )
    return Service(
        queue,
        about,
        tokenizer=ours.tokenizer if ours else None,
        trained_on=seen.read(target.path),
        timeout=settings.timeout,
        token=token,
    )


def _fingerprint(target: Artifact, scorer: Scorer, reading: ClassifierReading) -> str:
    """What is served: a model, and of a classifier also how it is read."""
    from alignment.scoring.classifier import Classifier

    if not isinstance(scorer, Classifier):
        return target.fingerprint
    return files.digest_json([target.fingerprint, reading.label, reading.text])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
