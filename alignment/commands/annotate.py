"""Write the file in which people compare answers: stage=annotate pairs=latest:pairs out=pairs.csv."""

from __future__ import annotations

import shlex

from alignment import console, files
from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, place, reference, text
from alignment.store import Store


class Settings(StrictSettings):
    """``stage=annotate``. What people have filled in comes back with ``stage=label annotations=<file>``."""

    pairs: str = reference("the pairs of answers to judge: an artifact of stage=pairs")
    out: str = place("the file to write, for a spreadsheet (.csv) or a tool of your own (.jsonl)")
    count: int | None = execution("pairs at most, chosen by a hash of their ids; null takes all", ge=1)
    seed: int = execution("of the order of the rows; one of their own for everybody who judges", ge=0)
    guideline: str = text("what annotators are told: helpfulness, safety, or a text file of your own")


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> None:
    """Write the file, and the guideline beside it. Neither may be there yet: it may hold somebody's work."""
    from alignment.data import annotations, guidelines, pairs, spreadsheet

    told = guidelines.guideline(settings.guideline)
    out = files.typed(settings.out)
    beside = out.with_suffix(".guideline.txt")
    for path in (out, beside):
        if path.exists():
            raise UserError(
                f"{path}: is there already",
                cause="It may hold what somebody has filled in.",
                remedy="Choose another out=<file>, or move it away.",
            )
    directory = inputs["pairs"].need("answers").path
    count = annotations.export(out, pairs.stream(directory), settings.count, settings.seed)
    files.write_atomic(beside, told)
    console.say(f"{count:,} pairs: {out}", style="")
    console.say(f"what annotators are told: {beside}", style="")
    longest = max(max(map(len, row.values())) for _, row in spreadsheet.read_rows(out, annotations.COLUMNS))
    if out.suffix == ".csv" and longest > spreadsheet.CELL_LIMIT:
        console.say(
            f"some texts are longer than the {spreadsheet.CELL_LIMIT:,} characters that a spreadsheet keeps in a cell, "
            "and would come back cut off and be refused: use .jsonl",
            style="yellow",
        )
    place = f"store={shlex.quote(str(store.root))} pairs=run:{directory}"
    console.say(f"then: stage=label {place} judge=null annotations={shlex.quote(str(out))}", style="")
