from __future__ import annotations

from pathlib import Path

import pytest
from chat_samples import law, talks
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from test_tokenizers import byte_level
from transformers import AutoTokenizer

from alignment.chat import template
from alignment.chat.render import SCHEMAS, prompt_ids, render
from alignment.chat.tokenizers import Tokenizer, load
from alignment.chat.types import Messages, messages
from alignment.errors import UserError


def plain(turns: Messages) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def differing(stranger, tokenizer: Tokenizer, schema: str, talks: list[Messages]) -> list[Messages]:  # type: ignore[no-untyped-def]
    """Conversations for which vanilla transformers gives other ids than we do, whole or as a prompt."""
    whole = stranger.apply_chat_template([plain(turns) for turns in talks], return_dict=False)
    prompts = stranger.apply_chat_template(
        [plain(turns[:-1]) for turns in talks], add_generation_prompt=True, return_dict=False
    )
    return [
        turns
        for turns, ids, prompt in zip(talks, whole, prompts, strict=True)
        if ids != render(turns, tokenizer, schema).ids or prompt != prompt_ids(turns[:-1], tokenizer)
    ]


@pytest.fixture(scope="module")
def strangers(tokenizer: Tokenizer, gemma_like: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Vanilla tokenizers of saved directories, by digest and schema."""
    found = {}
    for each in (tokenizer, gemma_like):
        for schema in SCHEMAS:
            directory = tmp_path_factory.mktemp("saved")
            template.write(directory, each, schema)
            found[each.digest, schema] = AutoTokenizer.from_pretrained(directory)
    return found


@law
@given(turns=talks(), schema=st.sampled_from(sorted(SCHEMAS)))
def test_the_template_gives_our_ids_and_our_mask(
    lossless: Tokenizer, strangers: dict, turns: Messages, schema: str
) -> None:
    """Control spellings included: a user forges no turn through the template either."""
    stranger = strangers[lossless.digest, schema]
    assert not differing(stranger, lossless, schema, [turns])
    marked = stranger.apply_chat_template(plain(turns), return_assistant_tokens_mask=True, return_dict=True)
    assert [value == 1 for value in marked["assistant_masks"]] == render(turns, lossless, schema).mask


@pytest.mark.parametrize(
    ("schema", "every"),
    [("gemma2", 10), ("gemma1", 40), ("gemma1_table4", 40)]
    + [pytest.param(schema, 1, marks=pytest.mark.slow) for schema in sorted(SCHEMAS)],
)
def test_the_template_gives_our_ids_on_real_conversations(
    schema: str, every: int, text_tokenizer: Tokenizer, conversations: dict[str, list[Messages]], tmp_path: Path
) -> None:
    template.write(tmp_path, text_tokenizer, schema)
    stranger = AutoTokenizer.from_pretrained(tmp_path)
    least = {"qlora": 900, "octopack": 1100, "oasst": 300, "mt_bench_101": 1300, "hh_rlhf": 4000, "persona_chat": 700}
    assert all(len(conversations[name]) >= number for name, number in least.items())
    for name, found in conversations.items():
        assert not differing(stranger, text_tokenizer, schema, found[::every]), name


@pytest.mark.parametrize("file", ["gemma_export_vocab.spm", "gemma3_test_vocab.spm", "gemma4_test_vocab.spm"])
def test_the_template_fits_vocabularies_that_rewrite_text(
    file: str, shared_data: Path, conversations: dict[str, list[Messages]], tmp_path: Path
) -> None:
    """Their newlines vanish in normalisation; a header must still not melt into the text behind it."""
    tokenizer = load(shared_data / "sentencepiece_models" / file)
    template.write(tmp_path, tokenizer, "gemma2")
    stranger = AutoTokenizer.from_pretrained(tmp_path)
    for name, found in conversations.items():
        assert not differing(stranger, tokenizer, "gemma2", found[:60]), name


def test_the_template_fits_a_foreign_directory(conversations: dict[str, list[Messages]], tmp_path: Path) -> None:
    tokenizer = load(byte_level(tmp_path / "foreign"))
    template.write(tmp_path / "saved", tokenizer)
    stranger = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for name, found in conversations.items():
        assert not differing(stranger, tokenizer, "gemma2", found[:60]), name


def test_a_vocabulary_that_the_template_cannot_follow_is_refused(tmp_path: Path) -> None:
    directory = byte_level(tmp_path / "foreign", prefix=True)
    with pytest.raises(UserError, match="no chat template"):
        template.write(tmp_path / "saved", load(directory))
    assert not (tmp_path / "saved" / template.FILE).exists()


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ((("system", "Be brief."),), "needs a user turn"),
        ((("assistant", "Hi"),), "must alternate"),
        ((("user", "Hi"), ("user", "Hi")), "must alternate"),
        ((("user", "Hi"), ("system", "Hi")), "must alternate"),
        ((("tool", "Hi"),), "must alternate"),
        ((("user", ["Hi"]),), "must be text"),
        ((("system", ["Hi"]), ("user", "Hi")), "must be text"),
    ],
)
def test_the_template_refuses_what_we_refuse(turns: tuple, said: str, tokenizer: Tokenizer, strangers: dict) -> None:
    stranger = strangers[tokenizer.digest, "gemma2"]
    with pytest.raises(TemplateError, match=said):
        stranger.apply_chat_template([{"role": role, "content": content} for role, content in turns])


def test_no_generation_prompt_after_an_answer(tokenizer: Tokenizer, strangers: dict) -> None:
    stranger = strangers[tokenizer.digest, "gemma2"]
    turns = messages(("user", "Hi"), ("assistant", "Yes?"))
    with pytest.raises(TemplateError, match="ends with the user"):
        stranger.apply_chat_template(plain(turns), add_generation_prompt=True)


def test_what_is_rendered_for_reading_stays_what_was_written(tokenizer: Tokenizer, strangers: dict) -> None:
    """Nothing unseen goes into a template unless the vocabulary needs it."""
    text = strangers[tokenizer.digest, "gemma2"].apply_chat_template(
        plain(messages(("user", "\nHi"), ("assistant", "Yes?"))), tokenize=False
    )
    assert text == "<bos><start_of_turn>user\n\nHi<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn><eos>"
