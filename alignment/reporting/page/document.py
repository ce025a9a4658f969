"""The page itself: everything in one file, with a policy that lets the browser fetch nothing and run only our scripts.

The scripts are named in the policy by their digests, so that no text that reached the page could run although it got
past the escaping. Equal content gives equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from alignment.reporting.plots import plain

ASSETS = Path(__file__).with_name("assets")
SCRIPTS = ("page.js", "table.js", "graph.js", "figures.js", "samples.js")


class Section(NamedTuple):
    """A part of the page: what the navigation calls it, its heading, a few words, and its content in HTML."""

    key: str
    short: str
    title: str
    text: str
    content: str


def render(
    title: str, lead: str, sections: Sequence[Section], values: Mapping[str, Any], scripts: Sequence[str] = SCRIPTS
) -> str:
    """The whole document. ``values`` is what the ``scripts`` of ``assets/`` read; it may hold any text."""
    from plotly.offline import get_plotlyjs

    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in scripts)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    library = get_plotlyjs()
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        title=plain(title),
        lead=plain(lead),
        policy=policy(library, script),
        style=(ASSETS / "page.css").read_text(encoding="utf-8"),
        library=library,
        navigation="".join(f'<li><a href="#{one.key}">{plain(one.short)}</a></li>' for one in sections),
        sections="\n".join(map(_section, sections)),
        values=embedded(values),
        script=script,
    )


def policy(*scripts: str) -> str:
    """A content security policy that allows these scripts and nothing from anywhere."""
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts
    )
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(values: Mapping[str, Any]) -> str:
    """JSON that can stand inside a script element, whatever text it holds: no ``<``, ``>`` or ``&`` is left in it."""
    told = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        told = told.replace(letter, f"\\u{ord(letter):04x}")
    return told


def _section(one: Section) -> str:
    head = f'<h2 id="{one.key}-title">{plain(one.title)}</h2>'
    about = f"<p>{plain(one.text)}</p>" if one.text else ""
    return f'<section id="{one.key}" aria-labelledby="{one.key}-title">{head}{about}\n{one.content}\n</section>'
