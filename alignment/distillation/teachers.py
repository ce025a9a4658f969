"""Teachers that are not in memory (``training.teachers.Telling``)."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.data.topk import Store, TopK
from alignment.sampling.served_topk import ServedTopK
from alignment.training.lessons import Row


class Stored:
    """What a teacher left beside the dataset."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def tell(self, rows: Sequence[Row]) -> list[TopK]:
        """As :class:`Telling` says. Raises :class:`UserError` for a row that is not there, or reads otherwise there."""
        return self._store.rows([row.name for row in rows], [row.targets for row in rows])


class Served:
    """A teacher behind a server."""

    def __init__(self, server: ServedTopK) -> None:
        self._server = server

    def tell(self, rows: Sequence[Row]) -> list[TopK]:
        """As :class:`Telling` says. Raises :class:`UserError`, which names the row, where the server does not."""
        sequences = [(row.ids.tolist(), row.trained.tolist()) for row in rows]
        return self._server.top_k([row.name for row in rows], sequences)
