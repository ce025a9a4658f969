"""What a raw row looks like: one function per declared format, in one table.

A format turns a raw row into candidates (chat types without an id, or with the one that the source gives). Most
give one; a tree gives its paths and a book its passages. What cannot become a row is a candidate too, with the
reason, so that nothing is lost between reading and the ledger. A raw row that does not have the declared shape
at all (a column missing, a list where a text belongs) is a :class:`DataError` with its ``file:line``.

``dialogues`` and ``questions`` give conversations and prompts, ``multiple_choice`` prompts whose answers likelihoods
tell, ``pairs`` and ``joined`` comparisons, ``documents`` text; ``turns`` and ``shape`` are what they share, and
``grades`` how comparisons are graded.
"""

from __future__ import annotations

from typing import get_args

from alignment.data.formats import dialogues, documents, joined, multiple_choice, pairs, questions
from alignment.data.formats.shape import Format, NoOptions, Shape, with_labels
from alignment.data.formats.turns import Markers
from alignment.data.rows import Kind, Raw, Reading, one

__all__ = ["FORMATS", "Format", "Shape"]


def read_ready(raw: Raw, shape: Shape) -> Reading:
    """A row of the miniature world or of another dataset, which is a chat type already."""
    return one(raw.value)


FORMATS: dict[str, Format] = {
    "messages": Format(
        dialogues.read_messages,
        {"conversations": ("messages",), "prompts": ("messages",)},
        dialogues.MessagesOptions,
        with_labels(),
    ),
    "sharegpt": Format(
        dialogues.read_sharegpt,
        {"conversations": ("messages",), "prompts": ("messages",)},
        dialogues.TurnsOptions,
        with_labels(),
    ),
    "exchanges": Format(
        dialogues.read_exchanges,
        {"conversations": ("exchanges",), "prompts": ("exchanges",)},
        dialogues.ExchangesOptions,
        with_labels(),
    ),
    "prompt_completion": Format(
        dialogues.read_prompt_completion,
        {"conversations": ("prompt", "completion"), "prompts": ("prompt",)},
        dialogues.QuestionOptions,
        with_labels("system"),
    ),
    "instruction": Format(
        dialogues.read_instruction,
        {"conversations": ("instruction", "response"), "prompts": ("instruction",)},
        NoOptions,
        with_labels("input"),
    ),
    "human_assistant": Format(
        dialogues.read_human_assistant,
        {"conversations": ("text",), "prompts": ("text",)},
        dialogues.MarkedOptions,
        {
            "conversations": with_labels("answer", "system")["conversations"],
            "prompts": with_labels("system")["prompts"],
        },
    ),
    "oasst_trees": Format(dialogues.read_oasst_trees, {"conversations": (), "prompts": ()}, dialogues.TreeOptions),
    "plain": Format(questions.read_plain, {"prompts": ()}, NoOptions),
    "topics": Format(questions.read_topics, {"prompts": ()}, NoOptions),
    "beginnings": Format(questions.read_beginnings, {"prompts": ()}, multiple_choice.Tagged, {"prompts": ("prompt",)}),
    "bold": Format(questions.read_bold, {"prompts": ()}, questions.BoldOptions),
    "multiple_choice": Format(
        multiple_choice.read_multiple_choice,
        {"prompts": ("question",)},
        multiple_choice.ChoiceOptions,
        {"prompts": ("context", "choices", "labels", "answer", "id", "tags", "category", "attack")},
    ),
    "bbq": Format(multiple_choice.read_bbq, {"prompts": ()}, multiple_choice.BbqOptions, {"prompts": ("id",)}),
    "sentence_pair": Format(
        multiple_choice.read_sentence_pair,
        {"prompts": ("first", "second")},
        multiple_choice.Tagged,
        {"prompts": ("id", "tags")},
    ),
    "wino_bias": Format(multiple_choice.read_wino_bias, {"prompts": ()}, multiple_choice.Tagged),
    "sampling_report": Format(
        questions.read_sampling_report, {"conversations": (), "prompts": ()}, questions.ReportOptions
    ),
    "marked_pair": Format(
        pairs.read_marked_pair, {"comparisons": ("chosen", "rejected")}, Markers, with_labels(kinds=("comparisons",))
    ),
    "chosen_rejected": Format(
        pairs.read_chosen_rejected,
        {"comparisons": ("chosen", "rejected")},
        pairs.PromptOptions,
        with_labels("prompt", "grade", *pairs.SAFE, kinds=("comparisons",)),
    ),
    "safe_rlhf": Format(pairs.read_safe_rlhf, {"comparisons": ()}, pairs.SafeOptions),
    "graded_pair": Format(
        pairs.read_graded_pair,
        {"comparisons": ("prompt", "answer_a", "answer_b", "preference")},
        pairs.GradedOptions,
        with_labels(kinds=("comparisons",)),
    ),
    "scored_pair": Format(joined.read_scored_pair, {"comparisons": ("prompt", "answer")}, joined.ScoredOptions),
    "labelled_pair": Format(
        joined.read_labelled_pair,
        {"comparisons": ("prompt", "answer", "label")},
        joined.LabelledOptions,
        {"comparisons": ("type",)},
    ),
    "oasst_pairs": Format(joined.read_oasst_pairs, {"comparisons": ()}, joined.RankedOptions),
    "text": Format(documents.read_text, {"text": ("text",)}, documents.TextOptions),
    "wikitext": Format(documents.read_wikitext, {"text": ("text",)}, documents.WikitextOptions),
    "miniature": Format(read_ready, dict.fromkeys(get_args(Kind), ()), NoOptions),
    "dataset": Format(read_ready, dict.fromkeys(get_args(Kind), ()), NoOptions),
}
"""By the name that a recipe declares."""
