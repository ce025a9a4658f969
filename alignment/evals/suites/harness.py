"""This model as lm-evaluation-harness knows one: likelihoods of continuations and of texts, and texts that go on.

Text is encoded apart from what follows it; spaces that end a context belong to what follows, as in the harness's own
models. A chat travels through the harness as text: :meth:`Examinee.apply_chat_template` writes the turns as JSON behind
a mark, and they become ids here, by the model's own schema.

Axes: B rows, T tokens, S positions that are told, V vocabulary.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from alignment import parts
from alignment.chat.render import prompt_ids
from alignment.chat.transcript import encoded
from alignment.chat.types import Message, prompt_key
from alignment.errors import UserError
from alignment.evals.suites.subject import Continued, Row, Subject
from alignment.gemma import core
from alignment.sampling.decoding import Decoding
from alignment.training import zero
from alignment.training.held_out import by_length, labelled
from alignment.training.rows import IGNORE, Collator, TokenRows

CHAT = "\x02chat"
"""Begins what is a chat, and no text."""
QUESTION = 20
"""Characters from which on a text of a document can only be a question that was learned, and no label."""


class Examinee(LM):
    """Asks a subject what the harness asks. ``decoding`` takes the place of what tasks say, or is null."""

    def __init__(self, subject: Subject, decoding: Decoding | None, seed: int) -> None:
        super().__init__()
        self.subject, self.decoding, self.seed = subject, decoding, seed
        self._calls = 0

    # ── what the harness asks ────────────────────────────────────────────────────────────────────

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Σ log p of every continuation, and whether each of its tokens is the likeliest."""
        self.subject.refuse_seen(keys_asked(requests))
        rows = [self._pair(*request.args[:2]) for request in requests]
        self._need_room([len(ids) for ids, _ in rows])
        found = self.subject.in_parts(self._title("loglikelihood"), rows, self._read)
        return [(-row["nll"], row["greedy"]) for row in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Σ log p of whole texts after ``<bos>``; a text too long for the model is read in windows."""
        rows: list[Row] = []
        of: list[int] = []
        tokenizer, limit = self.subject.policy.tokenizer, self.subject.policy.tokens_limit
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=encoded(request.args[0], tokenizer),
                prefix_token=tokenizer.bos_id,
                max_seq_len=limit - 1,
                context_len=1,
            )
            for before, told in map(make_disjoint_window, windows):
                rows.append(([*before, *told], [False] * len(before) + [True] * len(told)))
                of.append(number)
        totals = [0.0] * len(requests)
        read = self.subject.in_parts(self._title("rolling"), rows, self._read)
        for number, row in zip(of, read, strict=True):
            totals[number] -= row["nll"]
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What follows each context, up to the first of its stops."""
        self.subject.refuse_seen(keys_asked(requests))
        said: list[str] = [""] * len(requests)
        keys = keys_of(requests)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(self._drawn(request.args[1])), []).append(number)
        for drawn, numbers in alike.items():
            decoding = Decoding.parse(json.loads(drawn))
            given = [Continued(keys[n], self._context(requests[n].args[0])[0]) for n in numbers]
            self._need_room([len(one.ids) + decoding.max_new_tokens for one in given])
            replies = self.subject.continuations(self._title("answers"), given, decoding)
            for number, (reply,) in zip(numbers, replies, strict=True):
                said[number] = until(reply.text, requests[number].args[1].get("until"))
        return said

    # ── chats ────────────────────────────────────────────────────────────────────────────────────

    @property
    def tokenizer_name(self) -> str:
        """What tells one way of writing chats from another."""
        return self.subject.policy.tokenizer.digest

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns, marked; where none is to be generated, the last of them goes on."""
        return CHAT + json.dumps({"turns": chat_history, "open": not add_generation_prompt}, ensure_ascii=False)

    # ── ids ──────────────────────────────────────────────────────────────────────────────────────

    def _context(self, text: str) -> tuple[list[int], str]:
        """Ids of a context, and the spaces that it ended with."""
        tokenizer = self.subject.policy.tokenizer
        if text.startswith(CHAT):
            told = _told(text)
            turns = [Message(one["role"], one["content"]) for one in told["turns"]]
            begun = turns.pop().content if told["open"] else ""
            return [*prompt_ids(turns, tokenizer), *(encoded(begun, tokenizer) if begun else [])], ""
        bare = text.rstrip(" ")
        return [tokenizer.bos_id, *(encoded(bare, tokenizer) if bare else [])], text[len(bare) :]

    def _pair(self, context: str, continuation: str) -> Row:
        before, spaces = self._context(context)
        told = encoded(spaces + continuation, self.subject.policy.tokenizer)
        if not told:
            raise UserError(
                "lm_eval: a task asks for the likelihood of nothing",
                remedy="Look at its doc_to_choice or doc_to_target.",
            )
        return [*before, *told], [False] * len(before) + [True] * len(told)

    def _need_room(self, lengths: Sequence[int]) -> None:
        limit = self.subject.policy.tokens_limit
        if max(lengths, default=0) > limit:
            raise UserError(
                f"lm_eval: a request of {max(lengths):,} tokens, and the model sees {limit:,}",
                remedy="Say suite.shots=0 or fewer, or a smaller max_new_tokens in suite.decoding.",
            )

    def _title(self, name: str) -> str:
        """Parts of one kind of request are not those of another. The harness asks in the same order every time."""
        self._calls += 1
        return f"{name}-{self._calls}"

    def _drawn(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """How answers are drawn, as the task says where the suite does not."""
        if self.decoding is not None:
            return self.decoding.model_dump()
        sampled = bool(asked.get("do_sample", False))
        return {
            "samples": 1,
            "temperature": float(asked.get("temperature", 1.0)) if sampled else 0.0,
            "top_p": float(asked.get("top_p", 1.0)) if sampled else 1.0,
            "max_new_tokens": int(asked.get("max_gen_toks", asked.get("max_new_tokens", 256))),
            "seed": self.seed,
        }

    # ── likelihoods ──────────────────────────────────────────────────────────────────────────────

    def _read(self, some: Sequence[Row]) -> parts.Rows:
        policy, engine = self.subject.policy, self.subject.engine
        rows, collate = TokenRows.gather(some), Collator(policy.tokenizer.pad_id)
        found: list[dict[str, Any]] = [{}] * len(rows)
        with torch.no_grad(), zero.reading(_Reader(policy.model, engine.settings.loss_chunk), engine.device) as reader:
            for members in by_length(rows.lengths):
                batch = collate([labelled(*rows.row(index)) for index in members])
                read = reader(batch["input_ids"].to(engine.device), batch["shift_labels"].to(engine.device))
                for index, (nll, greedy) in zip(members, read, strict=True):
                    found[index] = {"nll": nll, "greedy": greedy}
        return found


def keys_asked(requests: Iterable[Instance]) -> set[str]:
    """Prompt keys under which the documents may have been learned from: of their texts, and of what is asked whole.

    Words and labels are left out, since an opening message can be one by chance.
    """
    texts: set[str] = set()
    for request in requests:
        asked = request.args[0]
        if asked.startswith(CHAT):
            asked = next(one["content"] for one in reversed(_told(asked)["turns"]) if one["role"] == "user")
        texts |= {asked, *(text for text in request.doc.values() if isinstance(text, str))}
    return {prompt_key([Message("user", text)]) for text in texts if len(text) >= QUESTION}


def keys_of(requests: Sequence[Instance]) -> list[str]:
    """What decides the noise of each answer: its task, its document, and its number among those of that document.

    So the answers to a task are the same whichever tasks stand beside it.
    """
    asked: Counter[tuple[str | None, int | None]] = Counter()
    keys = []
    for request in requests:
        of = request.task_name, request.doc_id
        keys.append(f"{request.task_name}:{request.doc_id}:{asked[of]}")
        asked[of] += 1
    return keys


def _told(chat: str) -> dict[str, Any]:
    """What :meth:`Examinee.apply_chat_template` has written."""
    told: dict[str, Any] = json.loads(chat.removeprefix(CHAT))
    return told


def until(text: str, stops: str | Sequence[str] | None) -> str:
    """A text up to the first of the words that end it."""
    ends = [stops] if isinstance(stops, str) else stops or []
    return text[: min((text.find(end) for end in ends if end and end in text), default=len(text))]


class _Reader(nn.Module):
    """A model that is asked for the NLL of rows, and whether greedy decoding would give them."""

    def __init__(self, model: nn.Module, chunk_tokens: int) -> None:
        super().__init__()
        self.model, self._chunk = model, chunk_tokens

    def forward(self, ids_BT: Tensor, labels_BT: Tensor) -> list[tuple[float, bool]]:
        """By row: Σ −log p in nats, and whether every label is the likeliest token."""
        hidden_BTD = core.hidden_states(self.model, ids_BT)
        weight_VD, softcap = core.head(self.model)
        found = []
        for hidden_TD, labels_T in zip(hidden_BTD, labels_BT, strict=True):
            told_T = labels_T != IGNORE
            nll, greedy = 0.0, True
            pieces = zip(hidden_TD[told_T].split(self._chunk), labels_T[told_T].split(self._chunk), strict=True)
            for hidden_SD, labels_S in pieces:
                logits_SV = (hidden_SD @ weight_VD.T).float()
                if softcap is not None:
                    logits_SV = softcap * torch.tanh(logits_SV / softcap)
                logprobs_SV = logits_SV.log_softmax(-1)
                nll -= float(logprobs_SV.gather(-1, labels_S[:, None]).sum())
                greedy = greedy and bool((logits_SV.argmax(-1) == labels_S).all())
            found.append((nll, greedy))
        return found
