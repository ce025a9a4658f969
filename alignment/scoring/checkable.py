"""Answers that a program finds right or wrong, by the reference of their prompt, as scorers.

============ =====================================================================================================
``exact``    1 where the answer is the reference, up to case and spacing
``gsm8k``    1 where the last number of the answer is that of the reference, in a worked solution behind ``####``
``ifeval``   the share of the prompt's instructions that the answer obeys (``scoring/instructions.py``)
============ =====================================================================================================

A prompt's reference is read once, when the scorer is opened, so that one which cannot be read stops nothing later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal

from alignment.chat.types import Messages, Prompt
from alignment.errors import UserError
from alignment.scoring import instructions
from alignment.scoring.scorer import Scores

Verdict = Callable[[str], float]
"""Of an answer's text: how far it is right, in [0, 1]."""

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-−])?[$€£]?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
"""``1,234.50``, ``$5``, ``-$5``; a dot that ends a sentence is no part of it, and the minus of ``7-2`` no sign."""


class Checkable:
    """One check of the answers to known prompts. Raises :class:`UserError` for a reference that it cannot read."""

    def __init__(self, check: str, prompts: Sequence[Prompt]) -> None:
        self.name, self.absolute = f"check_{check}", True
        self._verdicts: dict[Messages, Verdict] = {}
        read: dict[Messages, Prompt] = {}
        for prompt in prompts:
            same = read.setdefault(prompt.messages, prompt)
            if same is prompt:
                self._verdicts[prompt.messages] = CHECKS[check](prompt)
            elif _wanted(check, same) != _wanted(check, prompt):
                different = "references" if same.reference != prompt.reference else "instructions"
                raise UserError(
                    f"{prompt.id} and {same.id}: the same turns have different {different}",
                    cause="What is asked has to say which answer is right.",
                    remedy="Drop duplicates in the recipe.",
                )

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        """All three readings are the same number. Raises :class:`UserError` for a prompt that was not among those."""
        values = [self._verdict(turns[:-1])(turns[-1].content) for turns in dialogues]
        return Scores(values, values, values)

    def _verdict(self, asked: Messages) -> Verdict:
        if asked not in self._verdicts:
            raise UserError(
                f"{self.name}: nothing is known of the prompt {asked[-1].content[:60]!r}",
                cause="It is not among the prompts whose references were read.",
            )
        return self._verdicts[asked]


def exact(prompt: Prompt) -> Verdict:
    """The whole answer against the whole reference."""
    wanted = _plain(_reference(prompt))
    return lambda answer: float(_plain(answer) == wanted)


def gsm8k(prompt: Prompt) -> Verdict:
    """By value: ``$1,080.00`` is ``1080``. A reference without a number is refused."""
    wanted = _last_number(_reference(prompt).rpartition("####")[2])
    if wanted is None:
        raise _unreadable(prompt, "It holds no number.")
    return lambda answer: float(_last_number(answer) == wanted)


def ifeval(prompt: Prompt) -> Verdict:
    """The tags name the instructions, the reference holds their arguments, in the same order.

    A share rewards every instruction that is obeyed; that all are, IFEval's strict measure, is a score of 1.
    """
    obeyed = instructions.of_prompt(prompt.id, prompt.tags, _reference(prompt))
    return lambda answer: sum(obeys(answer) for obeys in obeyed) / len(obeyed)


CHECKS: dict[str, Callable[[Prompt], Verdict]] = {"exact": exact, "gsm8k": gsm8k, "ifeval": ifeval}
"""By the name in ``check:<name>``."""


def _wanted(check: str, prompt: Prompt) -> tuple[str | None, list[str]]:
    """All that a check reads of a prompt besides its turns; of its tags only ``ifeval`` reads any."""
    return prompt.reference, instructions.named(prompt.tags) if check == "ifeval" else []


def _reference(prompt: Prompt) -> str:
    if prompt.reference is None or not prompt.reference.strip():
        raise UserError(
            f"{prompt.id}: has no reference",
            cause="A check finds an answer right by the reference of its prompt.",
            remedy="Map `reference` in the recipe's `columns`, or leave out prompts without one.",
        )
    return prompt.reference


def _unreadable(prompt: Prompt, cause: str) -> UserError:
    return UserError(f"{prompt.id}: the reference {(prompt.reference or '')[:60]!r} cannot be read", cause=cause)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _last_number(text: str) -> Decimal | None:
    """The value of the last number of a text; None where it has none."""
    found = [*_NUMBER.finditer(text)]
    if not found:
        return None
    value = Decimal(found[-1]["digits"].replace(",", ""))
    return -value if found[-1]["sign"] else value
