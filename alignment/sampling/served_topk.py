"""The likeliest tokens of a model behind a server at every token that carries loss, with their log-probabilities.

The server is vLLM's, or speaks as it does: ``POST /completions`` with token ids for a prompt and ``prompt_logprobs=K``
answers with a list in ``choices[0].prompt_logprobs``, null for the first token, and then for each the K likeliest ids
and the token's own, as ``{"<id>": {"logprob": …, "rank": …, "decoded_token": …}}``. They are of the plain softmax,
whatever temperature is asked for; −∞ is written −9999. How it is asked, paid and kept is as for answers
(``endpoint.py``).

Axes: T trained tokens of one row, K likeliest, J = K or K + 1 entries of one token.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from alignment import files
from alignment.chat.tokenizers import Tokenizer, padded_vocab
from alignment.data.topk import Masked, TopK, trained_ids
from alignment.errors import DataError, UserError
from alignment.sampling.endpoint import Ask, EndpointSettings, Server, read_choice
from alignment.sampling.journal import Told

ROUNDING = 2.0**-20
"""What log-probabilities in fp32 can tell of 1 − Σ: the others share no less."""
TOO_MUCH = 1e-3
"""By how much probabilities may sum to more than 1."""
ALLOWED = 20
"""Likeliest tokens that vLLM gives without --max-logprobs."""
NOT_DECODED = "\N{REPLACEMENT CHARACTER}"


class ServedTopK(Server[TopK]):
    """Asks one model of one server for its ``k`` likeliest tokens; ``tokenizer`` is the one that it must have."""

    kinds: ClassVar = {"top_k": str}

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key: str,
        settings: EndpointSettings,
        journal: Path | None,
        k: int,
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__(model, base_url=base_url, api_key=api_key, settings=settings, journal=journal)
        assert k >= 1, "none are no distribution"
        self.k, self.tokenizer = k, tokenizer
        self.vocabulary = padded_vocab(tokenizer.vocab_size)
        self._known: set[int] = set()

    def top_k(
        self, names: Sequence[str], sequences: Sequence[Masked], on_progress: Callable[[int], None] | None = None
    ) -> list[TopK]:
        """For each (ids, mask) the ``k`` likeliest ids at every token under the mask, which never holds the first.

        Log-probabilities are in nats, at temperature 1. ``tail_T`` is log(1 − Σ), no less than log ``ROUNDING``, which
        is as much as they tell. ``on_progress`` is told the number of rows that are there.

        Raises :class:`UserError`, which names the row, where the server refuses a request or gives no usable answer in
        all attempts, where its model has another tokenizer, and where ``max_spend`` is reached. What was answered until
        then is in the journal.
        """
        asks = [self._ask(name, row) for name, row in zip(names, sequences, strict=True)]
        return self._all(asks, on_progress)

    def _ask(self, name: str, row: Masked) -> Ask:
        ids, mask = [int(index) for index in row[0]], tuple(bool(one) for one in row[1])
        assert any(mask), "there is something to ask about"
        assert not mask[0], "a trained token stands behind another one"
        body = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": 1,
            # The token that is drawn is thrown away. A server that does let its settings into the prompt's
            # log-probabilities gives those of the plain softmax at temperature 1.
            "temperature": 1.0,
            "prompt_logprobs": self.k,
            "add_special_tokens": False,
        }
        return Ask(name, body, files.digest_json([body, mask])[:32], mask)

    def _send(self, body: dict[str, Any]) -> bytes:
        known = {name: body[name] for name in ("model", "prompt", "max_tokens", "temperature")}
        more = {name: value for name, value in body.items() if name not in known}
        return self._client.completions.with_raw_response.create(**known, extra_body=more).content

    def _mend(self, told: str) -> str:
        if "logprobs" not in told:
            return super()._mend(told)
        return f"start the server with `--max-logprobs {self.k}` (vLLM allows {ALLOWED} without it), or lower top_k,"

    def _read(self, ask: Ask, content: bytes) -> tuple[int, TopK | str | UserError]:
        spent, choice = read_choice(content)
        if isinstance(choice, str):
            return sum(spent), choice
        told = choice.get("prompt_logprobs")
        if told is None:
            return sum(spent), UserError(
                f"{ask.key}: {self.name} tells nothing of a prompt's tokens",
                cause="Its answer has no `prompt_logprobs`.",
                remedy="Ask a server that gives them, as vLLM's does, or a teacher that is a model here.",
            )
        if not isinstance(told, list) or len(told) != len(ask.trained):
            length = f"{len(told):,}" if isinstance(told, list) else "none"
            return sum(spent), f"log-probabilities of {length} tokens, and {len(ask.trained):,} were sent"
        return sum(spent), self._row(ask, list(compress(told, ask.trained)))

    def _row(self, ask: Ask, told: Sequence[Any]) -> TopK | str | UserError:
        """What is told of the trained tokens, or why that is of no use."""
        tokens_T = trained_ids((ask.body["prompt"], ask.trained))
        best = []
        for place, (token, entries) in enumerate(zip(tokens_T.tolist(), told, strict=True), 1):
            try:
                ids_J, logprobs_J = _columns(entries)
                spelled = entries[str(token)].get("decoded_token")
            except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
                return f"prompt_logprobs of another form than vLLM's at trained token {place} ({type(error).__name__})"
            if len(ids_J) < self.k:
                return f"{len(ids_J)} log-probabilities at trained token {place}, and {self.k} were asked for"
            if not np.isfinite(logprobs_J).all():
                return f"a log-probability that is no finite number, at trained token {place}"
            if problem := self._unlike(ask.key, token, spelled, ids_J):
                return problem
            order_K = np.argsort(-logprobs_J, kind="stable")[: self.k]
            if np.logaddexp.reduce(logprobs_J[order_K]) > np.log1p(TOO_MUCH):
                return self._no_logprobs(ask.key, place)
            best.append((ids_J[order_K], logprobs_J[order_K]))
        ids_TK, logprobs_TK = (np.stack(part) for part in zip(*best, strict=True))
        return TopK(tokens_T, ids_TK.astype(np.int32), logprobs_TK.astype(np.float32), tails(logprobs_TK))

    def _no_logprobs(self, name: str, place: int) -> UserError:
        return UserError(
            f"{name}: what {self.name} gives at trained token {place} are no log-probabilities",
            cause="Their probabilities sum to more than 1.",
            remedy="Start the server without --logprobs-mode, or with `--logprobs-mode raw_logprobs`.",
        )

    def _unlike(self, name: str, token: int, spelled: str | None, ids_J: NDArray[np.int64]) -> UserError | None:
        """An error where the server's tokenizer is not ours, as far as this token shows it; each is looked at once."""
        beyond = ids_J[(ids_J < 0) | (ids_J >= self.vocabulary)]
        if not len(beyond) and token in self._known:
            return None
        ours = self._spelling(token)
        if not len(beyond) and _alike(ours, spelled, token):
            self._known.add(token)
            return None
        shown = f"It names id {beyond[0]}" if len(beyond) else f"Id {token} is {spelled!r} there and {ours!r} here"
        return UserError(
            f"{name}: the model behind {self.name} has another tokenizer",
            cause=f"{shown}; ours has {self.tokenizer.vocab_size:,} pieces.",
            remedy="Serve the model whose tokenizer this is. Between different ones distillation is another method.",
        )

    def _spelling(self, token: int) -> str:
        if token in self.tokenizer.control_ids:
            return self.tokenizer.spelling(token)
        return self.tokenizer.decode([token])

    def _line(self, answer: TopK) -> Told:
        parts = (answer.ids_TK.astype("<i4"), answer.logprobs_TK.astype("<f4"), answer.tail_T.astype("<f4"))
        return {"top_k": b64encode(b"".join(part.tobytes() for part in parts)).decode()}

    def _answered(self, ask: Ask, line: Told) -> TopK:
        tokens_T = trained_ids((ask.body["prompt"], ask.trained))
        many = len(tokens_T) * self.k
        try:
            whole = b64decode(line["top_k"], validate=True)
        except ValueError:
            whole = b""
        if len(whole) != 8 * many + 4 * len(tokens_T):
            assert self._journal is not None, "the line came from there"
            raise DataError(
                str(self._journal.path),
                f"the line of {ask.key} is damaged",
                remedy=f"Remove the line with the digest {ask.digest}; its answer is asked for again.",
            )
        shape = (len(tokens_T), self.k)
        ids_TK = np.frombuffer(whole, "<i4", many).reshape(shape)
        logprobs_TK = np.frombuffer(whole, "<f4", many, 4 * many).reshape(shape)
        return TopK(tokens_T, ids_TK, logprobs_TK, np.frombuffer(whole, "<f4", -1, 8 * many))


def tails(logprobs_TK: NDArray[np.floating]) -> NDArray[np.float32]:
    """log(1 − Σ_k p_k) of each row, at least log ``ROUNDING``: where Σ rounds to 1 or above it, no more can be told."""
    total_T = np.logaddexp.reduce(logprobs_TK.astype(np.float64), axis=-1)
    rest_T = -np.expm1(np.minimum(total_T, 0.0))
    return np.log(np.maximum(rest_T, ROUNDING)).astype(np.float32)


def _columns(entries: Mapping[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """``ids_J`` and ``logprobs_J`` of one token."""
    logprobs = [entry["logprob"] for entry in entries.values()]
    if not all(isinstance(value, float | int) and not isinstance(value, bool) for value in logprobs):
        raise TypeError("a log-probability is a number")
    return np.array([int(index) for index in entries], np.int64), np.array(logprobs, np.float64)


def _alike(ours: str, theirs: str | None, token: int) -> bool:
    """Whether a server's spelling of a token is ours, as far as it can be told.

    Servers spell the space at a piece's beginning in several ways or not at all, half a character not at all, and some
    tell no more than the id.
    """
    if not isinstance(theirs, str) or theirs == f"token_id:{token}" or NOT_DECODED in ours + theirs:
        return True
    plain, other = (text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip() for text in (ours, theirs))
    return not other or plain == other
