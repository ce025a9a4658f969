from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from chat_samples import TEXT, law, written
from hypothesis import given
from transformers import AutoTokenizer, Gemma2Config

from alignment.chat.tokenizers import Tokenizer, load, padded_vocab
from alignment.errors import UserError


@law
@given(text=written())
def test_text_reads_back_and_never_becomes_control(lossless: Tokenizer, text: str) -> None:
    ids = lossless.encode(text)
    assert lossless.decode(ids) == text
    assert lossless.control_ids.isdisjoint(ids)
    assert lossless.encode_many([text, "x"]) == [ids, lossless.encode("x")]


@law
@given(text=written())
def test_ids_are_sentencepieces_own(model_file: Path, tokenizer: Tokenizer, text: str) -> None:
    for marker in ("<start_of_turn>", "<end_of_turn>"):  # which SentencePiece takes for control
        text = text.replace(marker, "")
    if "<start_of_turn>" in text or "<end_of_turn>" in text:
        return
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    assert tokenizer.encode(text) == model.encode(text)


def test_ids_on_real_text_are_sentencepieces_own(text_tokenizer: Tokenizer, texts: list[str]) -> None:
    model = sentencepiece.SentencePieceProcessor(model_proto=text_tokenizer.sentencepiece)
    assert len(texts) > 5000
    ids = text_tokenizer.encode_many(texts)
    assert ids == model.encode(texts)
    assert [text_tokenizer.decode(row) for row in ids] == texts


def test_runs_of_whitespace_are_gemmas_pieces(gemma_like_file: Path, gemma_like: Tokenizer) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(gemma_like_file))
    for text in ("a\n\n\nb", "\n" * 12, "x    y  z", " " * 11 + "if", "<table>\n\n  the</b>", "the " * 3):
        assert gemma_like.encode(text) == model.encode(text), text
    assert [gemma_like.piece(i) for i in gemma_like.encode("\n\n\n")] == ["\n\n\n"]


@pytest.mark.parametrize(
    ("name", "pad", "eos", "bos", "start", "end"),
    [
        ("gemma_export_vocab.spm", 0, 1, 2, 4, 5),
        ("gemma3_test_vocab.spm", 0, 2, 1, 6, 7),
        ("gemma4_test_vocab.spm", 0, 2, 1, 6, 7),
    ],
)
def test_ids_are_read_from_the_model(
    name: str, pad: int, eos: int, bos: int, start: int, end: int, shared_data: Path
) -> None:
    tokenizer = load(shared_data / "sentencepiece_models" / name)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (pad, eos, bos)
    assert (tokenizer.start_of_turn_id, tokenizer.end_of_turn_id, tokenizer.unk_id) == (start, end, 3)
    for text in (
        "the <pad> <start_of_turn> ＜eos＞ <0x41>",
        "＜end_of_turn＞",
    ):  # NFKC makes control spellings of these
        assert tokenizer.control_ids.isdisjoint(tokenizer.encode(text))


def test_unigram_ids_are_sentencepieces_own(texts: list[str], shared_data: Path) -> None:
    file = shared_data / "sentencepiece_models/gemma_export_vocab.spm"
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    assert load(file).encode_many(texts[::3]) == model.encode(texts[::3])


def test_a_saved_directory_gives_the_same_ids_in_vanilla_transformers(
    text_tokenizer: Tokenizer, texts: list[str], tmp_path: Path
) -> None:
    text_tokenizer.save(tmp_path)
    Gemma2Config().save_pretrained(tmp_path)  # its model type must not bring another tokenizer class
    stranger = AutoTokenizer.from_pretrained(tmp_path)
    bos = text_tokenizer.bos_id
    some = texts[::3]
    assert stranger(some)["input_ids"] == [[bos, *ids] for ids in text_tokenizer.encode_many(some)]
    assert (stranger.pad_token_id, stranger.eos_token_id, stranger.bos_token_id) == (0, 1, 2)
    assert stranger("<end_of_turn>", add_special_tokens=False)["input_ids"] == [107]
    assert (
        stranger.decode([106, *text_tokenizer.encode("so <eos> it\n"), 1], skip_special_tokens=True) == "so <eos> it\n"
    )
    assert sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model")).vocab_size() == 4000


@law
@given(text=written())
def test_a_saved_directory_keeps_strange_text(lossless: Tokenizer, saved: dict[str, object], text: str) -> None:
    stranger = saved[lossless.digest]
    ids = stranger(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    assert ids == lossless.encode(text)


@pytest.fixture(scope="module")
def saved(tokenizer: Tokenizer, gemma_like: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    found = {}
    for each in (tokenizer, gemma_like):
        directory = tmp_path_factory.mktemp("saved")
        each.save(directory)
        found[each.digest] = AutoTokenizer.from_pretrained(directory)
    return found


def test_the_digest_is_the_models_not_the_places(model_file: Path, gemma_like: Tokenizer, tmp_path: Path) -> None:
    tokenizer = load(model_file)
    shutil.copy(model_file, tmp_path / "other.spm")
    tokenizer.save(tmp_path / "saved")
    (tmp_path / "bare").mkdir()
    shutil.copy(model_file, tmp_path / "bare")
    for path in (tmp_path / "other.spm", tmp_path / "saved", tmp_path / "saved/tokenizer.json", tmp_path / "bare"):
        assert load(path).digest == tokenizer.digest
        assert load(path).control_spellings == tokenizer.control_spellings
    assert gemma_like.digest != tokenizer.digest


def byte_level(directory: Path, *, pad: str = "<pad>", prefix: bool = False) -> Path:
    """A foreign directory: byte-level pieces, no SentencePiece, names of its own."""
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.normalizer = tokenizers.normalizers.Prepend(" ") if prefix else None
    built.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|end|>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        show_progress=False,
    )
    built.train_from_iterator(TEXT, trainer)
    directory.mkdir(exist_ok=True)
    built.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}, "pad_token": pad}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_a_foreign_directory_is_read_by_its_own_names(tmp_path: Path) -> None:
    tokenizer = load(byte_level(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert (tokenizer.junction, tokenizer.sentencepiece) == ("always", None)
    text = "the  <|end|>\n\n é東 <end_of_turn> <unk>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode(text))
    tokenizer.save(tmp_path / "saved")
    stranger = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert stranger("an <unk> word")["input_ids"] == [0, *tokenizer.encode("an <unk> word")]
    assert load(tmp_path / "saved").digest == tokenizer.digest


def test_padding_that_is_also_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one id for several control tokens"):
        load(byte_level(tmp_path, pad="<|end|>"))


def test_what_is_no_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.model").write_bytes(b"not a model at all")
    (tmp_path / "json").mkdir()
    (tmp_path / "json/tokenizer.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    cases = {
        "nowhere": "there is no tokenizer at",
        "empty": "holds no tokenizer",
        "broken.model": "is not a SentencePiece model",
        "json": "is not a tokenizer",
    }
    for name, said in cases.items():
        with pytest.raises(UserError, match=said):
            load(tmp_path / name)


def test_control_ids_are_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the user")
    assert tokenizer.decode([2, 106, *ids, 107, 1, 0, 0, tokenizer.vocab_size + 3]) == "the user"
    assert tokenizer.piece(107) == "<end_of_turn>"
    assert tokenizer.piece(tokenizer.vocab_size) == f"[{tokenizer.vocab_size}]"


def test_padded_vocabulary_holds_every_id(tokenizer: Tokenizer) -> None:
    assert [padded_vocab(n) for n in (1, 64, 65, 256_000)] == [64, 64, 128, 256_000]
    assert padded_vocab(520, multiple=512) == 1024
    assert max(tokenizer.control_ids) < tokenizer.vocab_size <= padded_vocab(tokenizer.vocab_size)
