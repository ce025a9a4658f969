from __future__ import annotations

import time
from pathlib import Path

import pytest
import sentencepiece
from chat_samples import TEXT

from alignment.chat import train as vocabulary_training
from alignment.chat.tokenizers import Tokenizer, load
from alignment.chat.train import SMALLEST, extend, train
from alignment.errors import UserError


def test_the_ids_are_gemmas(model_file: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    assert [model.id_to_piece(i) for i in range(8)] == [
        *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", "[@BOS@]", "<unused0>")
    ]
    assert [model.id_to_piece(i) for i in range(105, 110)] == [
        *("<unused98>", "<start_of_turn>", "<end_of_turn>", "\n", "<0x00>")
    ]
    assert model.id_to_piece(SMALLEST - 1) == "<0xFF>"
    assert [model.is_control(i) for i in range(5)] == [True, True, True, False, False]
    assert model.is_unknown(3)
    assert model.vocab_size() == 520


def test_digits_stay_single(tmp_path: Path) -> None:
    tokenizer = load(train(["in 1789 and 1789"] * 50, SMALLEST + 14, tmp_path))
    assert [tokenizer.piece(i) for i in tokenizer.encode("1789")] == ["1", "7", "8", "9"]
    assert len(tokenizer.encode("and")) == 1


def test_whitespace_is_kept(tokenizer: Tokenizer) -> None:
    text = "  the  user\n\n asked "
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("\n") == [108]


def test_the_same_call_gives_the_same_file(tmp_path: Path) -> None:
    first, again = train(TEXT, 450, tmp_path / "a"), train(iter(TEXT), 450, tmp_path / "b.model", seed=0)
    assert (first.name, again.name) == ("tokenizer.model", "b.model")
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("texts", "pieces", "said"),
    [
        (TEXT, SMALLEST, "365 are taken by control tokens"),
        (TEXT, SMALLEST + 3, r"alone are \d+\nAsk for more than \d+ pieces"),
        (["abc"], 900, r"it yields \d+ pieces at most"),
        ([], 500, "there is no text"),
    ],
)
def test_what_cannot_be_trained_is_told(texts: list[str], pieces: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        train(texts, pieces, tmp_path)
    assert not list(tmp_path.iterdir())


def test_control_spellings_in_the_text_are_not_learned(tmp_path: Path) -> None:
    texts = ["one <pad> two <unk> three <eos> four <start_of_turn> five <0x41>"] * 300
    tokenizer = load(train(texts, 400, tmp_path))
    assert len(tokenizer.encode("<pad>")) > 1
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


def test_training_on_a_megabyte_takes_a_moment(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "wikitext2/wikitext-2_valid.txt").read_text(encoding="utf-8").split("\n")
    start = time.perf_counter()
    train(lines, 800, tmp_path)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", ["test_sentencepiece_bpe.model", "test_sentencepiece_with_bytefallback.model"])
def test_a_model_without_control_tokens_is_refused_and_can_be_extended(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "sentencepiece_models" / name
    with pytest.raises(UserError, match=r"no pad piece, <start_of_turn>, <end_of_turn>") as told:
        load(source)
    assert f"python -m alignment.run stage=tokenizer extend={source}" in told.value.remedy

    before = sentencepiece.SentencePieceProcessor(model_file=str(source))
    extended = extend(source, tmp_path)
    after, tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(extended)), load(extended)
    assert [after.id_to_piece(i) for i in range(before.vocab_size())] == [
        before.id_to_piece(i) for i in range(before.vocab_size())
    ]
    assert after.vocab_size() == before.vocab_size() + 3 == tokenizer.vocab_size
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
    assert tokenizer.pad_id == after.pad_id() == before.vocab_size()
    assert tokenizer.encode("the quick fox") == before.encode("the quick fox")


def test_extending_a_whole_model_changes_nothing(model_file: Path, tmp_path: Path) -> None:
    assert load(extend(model_file, tmp_path)).digest == load(model_file).digest


def test_extending_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no SentencePiece model"):
        extend(tmp_path / "nothing.model", tmp_path)


def test_lines_from_which_nothing_is_learned_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train([*TEXT, "жар жар жар \u2585\nжар"], 450, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    lines = sum(bool(line) for text in TEXT for line in text.split("\n")) + 2
    assert f"1 of {lines:,} lines teach no pieces: they hold \u2585 (U+2585)" in said
    monkeypatch.setattr(vocabulary_training, "SAMPLED_LINES", lines - 1)
    train([*TEXT, "one", "more"], 450, tmp_path)
    assert f"a sample of {lines - 1:,} of {lines:,} lines" in " ".join(capsys.readouterr().out.split())
