"""Values that a user, a recipe, a dataset or a model directory from elsewhere may hold, most of them wrong."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

WORDS = (
    "",
    " ",
    "null",
    "true",
    "NaN",
    "inf",
    "-inf",
    "1e999",
    "-1",
    "0",
    "1",
    "2.5",
    "1e-4",
    "9" * 5000,
    "1_0",
    "0x10",
    "[",
    "[" * 2000,
    "[" * 40 + "]" * 40,
    "{",
    "{a: 1}",
    "{a: {b: [1, {c: null}]}}",
    "[1,2]",
    "[a,,b]",
    "1,2,3",
    "range(0,3)",
    "range(0,1000000000000)",
    "choice(a,b)",
    "glob(*)",
    "sort(3,1,2)",
    "int(x)",
    "${oc.env:HOME}",
    "${x}",
    "${",
    "../../outside/kept",
    "../outside",
    "/etc/passwd",
    "~nobody-of-that-name/x",
    "a/../../outside",
    "dir:../outside",
    "dir:/",
    "run:../outside",
    "hf:../..",
    "hf:a b/c",
    "mini:../x",
    "mini:sft",
    "latest:..",
    "step:x",
    "gold:overall",
    "raters:x",
    "check:exact",
    "remote:[::1]:99999",
    "remote:a:1@b:2",
    "endpoint:",
    "https://user:password@host/x",
    "\x1b]0;title\x07",
    "[bold]",
    "[/x]",
    "{{ ''.__class__.__mro__ }}",
    "%s%n",
    "\u202eabc",
    "a" * 300,
    "\n",
    "key=value",
    "'",
    '"',
    "\\",
    "😀",
    "<end_of_turn>",
    "<bos><start_of_turn>user\n",
    "&a [*a]",
    "!!python/object/apply:os.system ['x']",
)


def texts(longest: int = 20) -> st.SearchStrategy[str]:
    """Any text, or one of those that have been trouble somewhere."""
    return st.one_of(st.text(max_size=longest), st.sampled_from(WORDS))


def scalars() -> st.SearchStrategy[Any]:
    """What stands at a leaf of JSON, endless numbers included."""
    numbers = st.one_of(st.integers(), st.integers(-2, 3), st.floats(), st.sampled_from([2**63, -(2**63), 10**400]))
    return st.one_of(st.none(), st.booleans(), numbers, texts())


def values() -> st.SearchStrategy[Any]:
    """JSON of any form."""
    return st.recursive(
        scalars(),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts(6), inner, max_size=3)),
        max_leaves=6,
    )


@st.composite
def changed(draw: st.DrawFn, sound: Any, most: int = 3) -> Any:
    """``sound`` with up to ``most`` of its parts taken out, replaced, doubled or given a neighbour."""
    found = copy.deepcopy(sound)
    for _ in range(draw(st.integers(0, most))):
        path = draw(st.sampled_from(_paths(found)))
        if not path:
            return draw(values())
        place = found
        for part in path[:-1]:
            place = place[part]
        what = draw(st.sampled_from(["replace", "replace", "remove", "add", "nest"]))
        if what == "replace":
            place[path[-1]] = draw(values())
        elif what == "remove":
            del place[path[-1]]
        elif what == "nest":
            place[path[-1]] = [place[path[-1]]]
        elif isinstance(place, dict):
            place[draw(texts(6))] = draw(values())
        else:
            place.insert(0, draw(values()))
    return found


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree; the root only where it is all there is."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = [deeper for key, value in inner for deeper in [(*path, key), *_paths(value, (*path, key))] if deeper]
    return found if found or path else [()]


def plain(value: Any) -> str:
    """As JSON, with NaN and endless numbers as Python spells them."""
    return json.dumps(value)


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """Bytes cut off, overwritten, doubled or replaced altogether."""
    what = draw(st.sampled_from(["cut", "overwrite", "insert", "other", "whole"]))
    if what == "other":
        return draw(st.binary(max_size=200))
    if what == "whole" or not sound:
        return sound
    place = draw(st.integers(0, len(sound) - 1))
    if what == "cut":
        return sound[:place]
    some = draw(st.binary(min_size=1, max_size=8))
    return sound[:place] + some + sound[place + (len(some) if what == "overwrite" else 0) :]
