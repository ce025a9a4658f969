from __future__ import annotations

from rich.text import Text

from alignment.chat.render import render
from alignment.chat.show import CONTROL, SEEN, TRAINED, coloured, pieces
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import messages

TURNS = messages(("user", "Hi\n東京"), ("assistant", "brown foxes"))


def styled(text: Text) -> list[tuple[str, str]]:
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def test_colour_follows_the_mask(tokenizer: Tokenizer) -> None:
    assert styled(coloured(*render(TURNS, tokenizer), tokenizer)) == [
        ("<bos><start_of_turn>", CONTROL),
        ("user↵\nHi↵\n東京", SEEN),
        ("<end_of_turn>", CONTROL),
        ("↵\n", SEEN),
        ("<start_of_turn>", CONTROL),
        ("model↵\n", SEEN),
        ("brown foxes", TRAINED),
        ("<end_of_turn><eos>", f"bold {CONTROL}"),
    ]


def test_brackets_in_a_text_are_no_markup(tokenizer: Tokenizer) -> None:
    turns = messages(("user", "[bold red]x[/]"), ("assistant", "[/]"))
    assert "[bold red]x[/]" in coloured(*render(turns, tokenizer), tokenizer).plain


def test_pieces_show_where_text_is_cut(tokenizer: Tokenizer) -> None:
    ids, mask = render(messages(("user", "5 7"), ("assistant", "12")), tokenizer)
    shown = pieces(ids, mask, tokenizer)
    assert "↵\n5|·|7|<end_of_turn>|↵\n" in shown.plain
    assert ("1", TRAINED) in styled(shown)
    assert ("<eos>", f"bold {CONTROL}") in styled(shown)
