"""Records, references, checkpoints and journals that others wrote, or a disk damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fuzzing
import hostile
from fuzzing import told
from hypothesis import strategies as st

from alignment import artifacts, pipeline
from alignment.data.topk import TopK, need_finite
from alignment.merging import ancestors
from alignment.reporting import lineage
from alignment.sampling.endpoint import Ask, Endpoint, EndpointSettings, read_completion
from alignment.sampling.journal import Journal
from alignment.sampling.served_topk import ServedTopK
from alignment.store import Store, parse_reference
from alignment.training import checkpoints

RECORD: dict[str, Any] = {
    "schema_version": 1,
    "kind": "policy",
    "stage": "sft",
    "step": "sft",
    "fingerprint": "a" * 64,
    "parents": {"model.weights": {"reference": "step:base", "fingerprint": "b" * 64, "path": "runs/p/base-bbbbbbbb"}},
    "settings": {"seed": 0, "optimisation": {"batch": 8}},
    "tokens": {"digest": "c" * 64, "vocabulary": 100, "padded": 128, "schema": "gemma2"},
    "licences": ["MIT"],
    "metrics": {"loss": 1.25},
    "headline": "loss",
    "notes": {"device": "cpu", "tokens_processed": 10},
    "versions": {"torch": "2"},
    "machine": {"cpu": "x", "threads": 2},
    "files": {"weights.bin": "d" * 64},
    "created": "2026-01-01T00:00:00Z",
    "seconds": 1.5,
}
PLACES = ("../outside/kept", "/etc/passwd", "runs/p/sft-aaaaaaaa", "runs/p/base-bbbbbbbb", "\0", "..")


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """A record with something else in it, or what is left of one."""
    record = json.loads(json.dumps(RECORD))
    if draw(st.booleans()):
        record["files"] = {draw(st.sampled_from(PLACES)): "e" * 64}
    if draw(st.booleans()):
        record["parents"]["model.weights"] |= {
            "path": draw(st.sampled_from(PLACES)),
            "fingerprint": draw(st.sampled_from(["a" * 64, "b" * 64])),
        }
    changed = hostile.plain(draw(hostile.changed(record))).encode(errors="surrogatepass")
    return draw(hostile.damaged(changed)) if draw(st.booleans()) else changed


def records_are_read_or_refused(folder: Path, record: bytes) -> None:
    store = Store(Path("runs"))
    ours = store.root / "p" / "sft-aaaaaaaa"
    ours.mkdir(parents=True)
    (ours / artifacts.RECORD).write_bytes(record)
    (ours / "weights.bin").write_bytes(b"x")
    for work in (store.finished, lambda: store.find("a" * 64), lambda: store.latest("sft")):
        told(work)
    found = told(lambda: artifacts.load(ours))
    if found is not None:
        assert found.headline_text is not None
        for work in (
            lambda: artifacts.contained(found),
            lambda: lineage.record(found),
            lambda: lineage.tree(found, store),
            lambda: ancestors.common([found], None),
            lambda: store.children(found),
            found.verify,
        ):
            told(work)


test_records, test_records_thoroughly = fuzzing.both(
    records_are_read_or_refused, quick=40, thorough=800, record=records()
)

SCHEMES = ("step:", "latest:", "run:", "dir:", "hf:", "gold:", "raters:", "check:", "endpoint:", "")


def references_name_something_or_are_refused(folder: Path, scheme: str, name: str) -> None:
    def compose(*_: Any) -> dict[str, Any]:
        raise AssertionError("nothing is to be made")

    # What is named on the command line may lie anywhere; only what it names in turn may not.
    name = name.replace("outside", "elsewhere")
    maker = pipeline.Maker(Store(Path("runs")), compose, {}, patient=False)
    told(lambda: parse_reference(scheme + name))
    if not (scheme + name).startswith(("mini:", "remote:")):
        told(lambda: maker.resolve(scheme + name, {}))


test_references, test_references_thoroughly = fuzzing.both(
    references_name_something_or_are_refused,
    quick=100,
    thorough=700,
    scheme=st.sampled_from(SCHEMES),
    name=st.one_of(hostile.texts(), st.sampled_from(PLACES)),
)


def checkpoints_are_whole_or_passed_over(folder: Path, mark: bytes, names: list[str]) -> None:
    checkpoint = folder / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    for name in names:
        (checkpoint / name).write_bytes(b"x")
    (checkpoint / checkpoints.MARK).write_bytes(mark)
    found = checkpoints.last_whole(folder / "checkpoints")
    assert found in (None, checkpoint)
    if found is not None:
        assert names, "a mark that promises nothing marks nothing"
        assert set(names) == set(json.loads(mark)), "nothing is trusted that nobody promised"


X = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
MARKS = st.one_of(
    st.sampled_from([{"a": X}, {"a": X, "b": X}, {}, {"../../../outside/kept": X}, {"\0": X}])
    .flatmap(hostile.changed)
    .map(hostile.plain),
    hostile.texts(),
)
test_checkpoints, test_checkpoints_thoroughly = fuzzing.both(
    checkpoints_are_whole_or_passed_over,
    quick=60,
    thorough=400,
    mark=MARKS.map(lambda text: text.encode(errors="surrogatepass")),
    names=st.lists(st.sampled_from(["a", "b", "c"]), unique=True),
)

COMPLETION = {
    "choices": [{"message": {"role": "assistant", "content": "Ben."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 5},
}
LINE = {"digest": "a" * 32, "spent": 12, "text": "Ben.", "tokens": 5, "finished": True}


def completions_are_read_or_of_no_use(folder: Path, content: Any) -> None:
    spent, reply = read_completion(hostile.plain(content).encode(errors="surrogatepass"))
    assert spent >= 0
    assert reply


test_completions, test_completions_thoroughly = fuzzing.both(
    completions_are_read_or_of_no_use, quick=40, thorough=500, content=hostile.changed(COMPLETION)
)


ENTRIES = {str(index): {"logprob": -1.5, "rank": 1, "decoded_token": "x"} for index in (5, 6)}
READING = {
    "choices": [{"text": "x", "finish_reason": "length", "prompt_logprobs": [None, ENTRIES, ENTRIES]}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


class Pieces:
    """A tokenizer, as far as one is looked at."""

    vocab_size, control_ids = 64, frozenset[int]()

    def decode(self, ids: list[int]) -> str:
        return "x"


def readings_are_taken_or_of_no_use(folder: Path, content: Any) -> None:
    settings = EndpointSettings(concurrency=1, max_spend=None, timeout=1.0, retries=0, back_off=0.1)
    server = ServedTopK(
        "m", base_url="http://127.0.0.1:9", api_key="k", settings=settings, journal=None, k=2, tokenizer=Pieces()
    )  # type: ignore[arg-type]
    ask = Ask("a", {"prompt": [2, 5, 6]}, "a" * 32, (False, True, True))
    spent, read = server._read(ask, hostile.plain(content).encode(errors="surrogatepass"))
    assert spent >= 0
    assert read
    if isinstance(read, TopK):
        need_finite("a", read)
        assert read.ids_TK.shape == read.logprobs_TK.shape == (2, 2)


test_readings, test_readings_thoroughly = fuzzing.both(
    readings_are_taken_or_of_no_use, quick=60, thorough=1_000, content=hostile.changed(READING)
)


def journals_are_read_or_refused(folder: Path, lines: list[Any], end: bytes) -> None:
    path = folder / "journal.jsonl"
    path.write_bytes(b"".join(hostile.plain(line).encode(errors="surrogatepass") + b"\n" for line in lines) + end)
    journal = told(lambda: Journal(path, Endpoint.kinds))
    if journal is not None:
        assert journal.spent >= 0
        told(lambda: journal.answers(["a" * 32]))


test_journals, test_journals_thoroughly = fuzzing.both(
    journals_are_read_or_refused,
    quick=30,
    thorough=300,
    lines=st.lists(hostile.changed(LINE), max_size=3),
    end=st.sampled_from([b"", b"{", b'{"digest": "a', b"\n", b"\xff"]),
)
