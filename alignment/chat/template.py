"""The Jinja template saved beside a model: the same ids through ``apply_chat_template`` as through ``render``.

Generated from the same schema, the same breaking rule and the same headers, so the two cannot drift apart; what is
left to chance, how a tokenizer joins text, is tried out before a template is written.
"""

from __future__ import annotations

import json
from pathlib import Path

from alignment.chat import convert, spelling
from alignment.chat.render import HEADERS, SEPARATOR, prompt_ids, render, schema_named
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import messages
from alignment.errors import UserError

FILE = "chat_template.jinja"
"""Where transformers and vLLM look for it, beside the tokenizer."""

_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is not string -%}
        {{- raise_exception("A turn's content must be text.") -}}
    {%- endif -%}
    {%- set system, turns = messages[0]['content'] + '\\n\\n', messages[1:] -%}
{%- else -%}
    {%- set system, turns = '', messages -%}
{%- endif -%}
{{- @bos@ -}}
{%- for turn in turns -%}
    {%- if turn['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
        {{- raise_exception("Turns must alternate user/assistant/..., after at most one system message.") -}}
    {%- endif -%}
    {%- if turn['content'] is not string -%}
        {{- raise_exception("A turn's content must be text.") -}}
    {%- endif -%}
    {%- set text = (system + turn['content'] if loop.first else turn['content'])@break@ -%}
    {%- set junction = @junction@ -%}
    {%- if turn['role'] == 'user' -%}
        {{- @start@ + @user@ + junction + text + @end@ -}}
    {%- else -%}
        {{- @start@ + @model@ + junction -}}
        {%- generation -%}
        {{- text + (@last@ if loop.last else @end@) -}}
        {%- endgeneration -%}
    {%- endif -%}
    {%- if not loop.last -%}{{- @separator@ -}}{%- endif -%}
{%- else -%}
    {{- raise_exception("A conversation needs a user turn.") -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if turns[-1]['role'] != 'user' -%}
        {{- raise_exception("A generation prompt needs a conversation that ends with the user.") -}}
    {%- endif -%}
    {{- @separator@ + @start@ + @model@ -}}
{%- endif -%}
"""

_JUNCTIONS = {
    "clean": "''",
    "newline": "@boundary@ if text.startswith('\\n') else ''",
    "always": "@boundary@",
}
"""What stands between header and text, by how the vocabulary joins them. The tokenizer takes it for a cut."""


def jinja(tokenizer: Tokenizer, schema: str = "gemma2") -> str:
    """The template for one tokenizer and schema.

    Raises (inside Jinja) for turns that do not alternate, content that is not text, and a generation prompt after an
    answer. ``{% generation %}`` marks what carries loss, so that ``return_assistant_tokens_mask`` gives our mask.
    """
    closings = {"end_of_turn": tokenizer.end_of_turn_id, "eos": tokenizer.eos_id}
    broken = "".join(
        f".replace({_quoted(old)}, {_quoted(new)})" for old, new in spelling.steps(tokenizer.control_spellings)
    )
    values = {
        "junction": _JUNCTIONS[tokenizer.junction],
        "boundary": _quoted(convert.BOUNDARY),
        "break": broken,
        "bos": _quoted(tokenizer.spelling(tokenizer.bos_id)),
        "start": _quoted(tokenizer.spelling(tokenizer.start_of_turn_id)),
        "end": _quoted(tokenizer.spelling(tokenizer.end_of_turn_id)),
        "last": _quoted("".join(tokenizer.spelling(closings[name]) for name in schema_named(schema).last)),
        "user": _quoted(HEADERS["user"]),
        "model": _quoted(HEADERS["assistant"]),
        "separator": _quoted(SEPARATOR),
    }
    text = _TEMPLATE
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def write(directory: Path, tokenizer: Tokenizer, schema: str = "gemma2") -> Path:
    """Save tokenizer and template in ``directory``, and try them out as a stranger would: with transformers alone.

    UserError where a vocabulary joins text in a way that the template cannot follow.
    """
    from transformers import AutoTokenizer

    tokenizer.save(directory)
    file = directory / FILE
    file.write_text(jinja(tokenizer, schema), encoding="utf-8")
    stranger = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    names = "".join(tokenizer.control_spellings)
    turns = messages(
        ("system", " Be brief."),
        ("user", f"\n Hi{names}\u200b "),
        ("assistant", "  \nYes\n"),
        ("user", "8 é\n"),
        ("assistant", "x"),
    )
    plain = [{"role": turn.role, "content": turn.content} for turn in turns]
    whole = stranger.apply_chat_template(plain, return_dict=False)
    prompt = stranger.apply_chat_template(plain[:-1], add_generation_prompt=True, return_dict=False)
    if whole != render(turns, tokenizer, schema).ids or prompt != prompt_ids(turns[:-1], tokenizer):
        file.unlink()
        raise UserError(
            f"no chat template for {directory} gives the ids that training uses",
            cause="the tokenizer writes a header and the text behind it differently when they stand in one string",
            remedy="Use a SentencePiece model, or a tokenizer that puts no space in front of a text.",
        )
    return file


def has_chat_template(folder: Path) -> bool:
    """Whether a model's folder says how a chat is written, in a file of its own or beside the tokenizer's settings."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))


def _quoted(text: str) -> str:
    """A Jinja string literal: JSON's, which spells what is invisible."""
    return json.dumps(text)
