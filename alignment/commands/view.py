"""Make the W&B workspace that a report has defined: once its pipeline's runs are on the server."""

from __future__ import annotations

from alignment import console
from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.settings import Settings as StrictSettings
from alignment.settings import reference, text
from alignment.store import Store


class Settings(StrictSettings):
    """``stage=view``."""

    report: str = reference("a report that was made with its tracker on")
    entity: str | None = text("the W&B user or team whose workspace it is; null takes the one who is logged in")


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> None:
    """Make it, and say where it is."""
    from alignment.reporting import wandb_view

    path = inputs["report"].path / wandb_view.VIEW
    if not path.is_file():
        raise UserError(
            f"{inputs['report'].path} has no {wandb_view.VIEW}",
            cause="It is no report, or its tracker was off.",
            remedy="`stage=report … tracker=offline force=true` writes one.",
        )
    console.say(wandb_view.create(path, settings.entity))
