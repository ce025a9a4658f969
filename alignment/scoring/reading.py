"""Who reads rows and says at every token what it thought likely: a model here, or one behind a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alignment.artifacts import Artifact

if TYPE_CHECKING:
    from alignment.chat.tokenizers import Tokenizer
    from alignment.data.topk import Masked, Teacher, TopK
    from alignment.sampling.endpoint import EndpointSettings
    from alignment.training.engine import Engine


class Reader(NamedTuple):
    """A teacher that reads. ``header`` is what its students must share or know.

    ``limit`` is its context in tokens, None where only its server knows it; ``spent`` the tokens that a server took.
    """

    header: Teacher
    tokenizer: Tokenizer
    limit: int | None
    top_k: Callable[[Sequence[str], Sequence[Masked]], list[TopK]]
    spent: Callable[[], int | None]


def open_model(
    artifact: Artifact, engine: Engine, *, k: int, draws: int, temperature: float, block: int | None
) -> Reader:
    """A policy of ours or of the same layout; ``block`` is what text is cut into, None for conversations."""
    from alignment.data.topk import Teacher
    from alignment.sampling.topk import top_k
    from alignment.training.policies import open_policy

    policy = open_policy(artifact, engine)
    tokens, name = policy.tokens, artifact.step or artifact.path.name
    schema = tokens.schema if block is None else ""
    header = Teacher(name, tokens.digest, schema, tokens.padded, k, draws, temperature, block)

    def read(names: Sequence[str], rows: Sequence[Masked]) -> list[TopK]:
        return top_k(policy.model, rows, k, names=names, draws=draws, temperature=temperature, device=engine.device)

    return Reader(header, policy.tokenizer, policy.tokens_limit, read, lambda: None)


def open_server(
    artifact: Artifact,
    tokenizer: Path,
    endpoint: EndpointSettings,
    journal: Path,
    *,
    k: int,
    schema: str,
    block: int | None,
) -> Reader:
    """A model behind a server that the environment names; its tokenizer and chat schema are as they are said to be."""
    from alignment.chat import tokenizers
    from alignment.data.topk import Teacher
    from alignment.sampling.served_topk import ServedTopK

    pieces, name = tokenizers.load(tokenizer), artifact.step
    server = ServedTopK.from_environment(name.removeprefix("endpoint:"), journal, endpoint, k=k, tokenizer=pieces)
    header = Teacher(name, pieces.digest, schema, server.vocabulary, k, 0, 1.0, block)
    return Reader(header, pieces, None, server.top_k, lambda: server.spent)
