"""Rows that the miniature world writes itself, each split from pools of its own."""

from __future__ import annotations

from collections.abc import Iterator

from alignment.data.rows import Kind, Raw, Row
from alignment.data.sources import Draw, World
from alignment.miniature import choices, corpus, dates
from alignment.miniature.settings import Miniature


def read(source: World, kind: Kind) -> Iterator[Raw]:
    """The rows of every split in turn, numbered from 1 in each."""
    for split, draw in source.draws().items():
        for number, row in enumerate(_rows(source.world, draw, kind), 1):
            yield Raw(f"miniature/{split}", number, row, f"miniature/{split}", split)


def _rows(knobs: Miniature, draw: Draw, kind: Kind) -> Iterator[Row]:
    world, mix = knobs.world(), knobs.mixture.weights()
    if kind == "text" and draw.dates:
        return dates.chronicle(world, draw.rows, draw.seed)
    if kind == "text":
        return corpus.texts(world, draw.rows, draw.seed)
    assert draw.pool is not None
    if draw.dates:
        write = dates.conversations if kind == "conversations" else dates.prompts
        return write(world, draw.rows, draw.seed, split=draw.pool)
    if kind == "conversations" and draw.turns is not None:
        return corpus.long_dialogues(
            world,
            draw.rows,
            draw.seed,
            knobs.noise,
            turns=draw.turns,
            split=draw.pool,
            instructed=bool(draw.instructed),
        )
    if kind == "conversations":
        return corpus.conversations(world, draw.rows, draw.seed, knobs.noise, split=draw.pool, mix=mix)
    if kind == "prompts" and draw.choices is not None:
        return choices.choices(world, draw.rows, draw.seed, split=draw.pool, options=draw.choices)
    if kind == "prompts":
        return corpus.prompts(world, draw.rows, draw.seed, split=draw.pool, mix=mix)
    return corpus.comparisons(
        world,
        draw.rows,
        draw.seed,
        rater_noise=knobs.rater_noise,
        rater_taste=knobs.rater_taste,
        split=draw.pool,
        mix=mix,
        aspect=draw.aspect,
    )
