"""What comes over a socket: requests to the service, and replies of a server that is not what it should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fuzzing
import hostile
import pytest
from fuzzing import told
from hypothesis import strategies as st

from alignment.chat.tokenizers import Tokenizer
from alignment.scoring import requests
from alignment.scoring.remote import Remote

TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ben."}]
BODIES: list[Any] = [
    {"dialogues": [TURNS, TURNS]},
    {"keys": ["0123456789abcdef"]},
    {
        "query": ["<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\nBen."],
        "prompts": ["<start_of_turn>user\n"],
    },
]


@cache
def tokenizer() -> Tokenizer:
    import tempfile

    from alignment.chat import tokenizers
    from alignment.chat.train import train

    with tempfile.TemporaryDirectory() as folder:
        return tokenizers.load(train([f"line {number}" for number in range(60)], 380, Path(folder)))


def bodies_are_read_or_refused(folder: Path, body: bytes) -> None:
    known = tokenizer()

    def answered(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except requests.RefusedError as error:
            status, sentence = error.status, error.sentence
        assert 400 <= status < 500
        assert sentence.encode()
        return None

    found = answered(lambda: requests.object_of(body))
    if found is not None:
        for read in (requests.dialogues_of, requests.keys_of, lambda found: requests.dialogues_of_texts(found, known)):
            answered(lambda read=read: read(found))


BODY = st.one_of(
    st.sampled_from(BODIES)
    .flatmap(hostile.changed)
    .map(lambda tree: hostile.plain(tree).encode(errors="surrogatepass")),
    hostile.damaged(json.dumps(BODIES[0]).encode()),
)
test_bodies, test_bodies_thoroughly = fuzzing.both(
    bodies_are_read_or_refused, quick=60, thorough=1000, before=tokenizer, body=BODY
)

ABOUT = {"name": "r", "fingerprint": "f" * 64, "absolute": False, "most_dialogues": 4, "most_bytes": 4096}
SCORES = {"raw": [1.0], "reported": [0.5], "probability": [0.7], "fingerprint": "f" * 64}


class Reply:
    """What ``http.client`` gives, without a socket."""

    def __init__(self, status: int, content: bytes, wait: str | None) -> None:
        self.status, self.reason, self.content = status, "no reason", content
        self.headers = {"Retry-After": wait} if wait is not None else {}

    def read(self, most: int = -1) -> bytes:
        return self.content if most < 0 else self.content[:most]


def replies_are_read_or_refused(folder: Path, about: Any, scores: Any, status: int, wait: str | None) -> None:
    replies = [Reply(200, hostile.plain(about).encode(errors="surrogatepass"), None)]
    replies += [Reply(status, hostile.plain(scores).encode(errors="surrogatepass"), wait)] * 3

    class Connection:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def request(self, *_: Any) -> None:
            pass

        def getresponse(self) -> Reply:
            return replies.pop(0) if replies else Reply(503, b"", None)

        def close(self) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("http.client.HTTPConnection", Connection)
        patch.setattr("time.sleep", lambda _: None)
        remote = told(lambda: Remote("127.0.0.1:8400", attempts=2))
        if remote is not None:
            scores = told(lambda: remote.score([requests.dialogues_of({"dialogues": [TURNS]})[0]]))
            assert scores is None or len(scores.raw) == 1
            told(lambda: remote.refuse_seen(["0123456789abcdef"]))


test_replies, test_replies_thoroughly = fuzzing.both(
    replies_are_read_or_refused,
    quick=50,
    thorough=600,
    about=hostile.changed(ABOUT),
    scores=hostile.changed(SCORES),
    status=st.sampled_from([200, 200, 200, 401, 404, 422, 500, 503]),
    wait=st.one_of(st.none(), hostile.texts()),
)
