"""Mistaken self-identification: an answer in which the assistant claims to be another one, or another company's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from alignment.data.filters.filter import Finding, Judge
from alignment.data.filters.texts import answers_of
from alignment.data.rows import Row
from alignment.settings import Settings, identity

_I_AM = (
    r"\b(?:i am|i['’]m|my name is|my name['’]s|i am called|i go by|this is|(?:talking|chatting|speaking) (?:to|with)"
    r"|soy|me llamo|mi nombre es|je suis|je m['’]appelle|ich bin|ich hei(?:ß|ss)e|mein name ist"
    r"|eu sou|meu nome é|sono|mi chiamo|меня зовут|я)\b"
)
"""How one says who one is, in the languages that assistants' data mostly has."""

_BETWEEN = (
    r"(?:[\s,:\-–—*_“\"]+(?:a|an|the|large|small|language|model|ai|artificial|intelligence|assistant|chat ?bot|bot"
    r"|based|called|named|known|as|your|friendly|helpful|virtual|open-source|really|just|only|and|actually"
    r"|un|una|une|ein|eine|el|la|le|um|uma|asistente|assistente|modelo|modèle|llamado|llamada|appelé|namens)){0,7}"
)
"""Words that may stand between `I am` and the name."""

_MADE = (
    r"(?:created|developed|trained|made|built|designed|programmed|provided|maintained|owned|released|engineered"
    r"|from|work for|belong to|creado|desarrollado|entrenado|développé|créé|entraîné|entwickelt|trainiert|criado"
    r"|desenvolvido|treinado|sviluppato|creato|разработан\w*|создан\w*|обучен\w*)"
)
_ITSELF = (
    r"(?:\b(?:i am|i['’]m|i was|i have been|as an?|my|soy|fui|he sido|como|je suis|j['’]ai été|en tant qu|ich bin"
    r"|ich wurde|als|eu sou|fui|sono|я|как)\b)"
)
_CLAUSE = r"[^.!?\n;\"“”]"


class Options(Settings):
    """Whose names are wrong. Case does not count; a name is found as whole words only."""

    names: list[str] = identity("assistants that ours is not: ChatGPT, Open Assistant, …")
    companies: list[str] = identity("makers that ours does not have: OpenAI, LAION, …")
    own: list[str] = identity("names and makers that are right, even where the lists above have them")


def make(options: Options, against: Mapping[str, Sequence[Row]]) -> Judge:
    """Judge answers. What stands in quotation marks or in a code block is said by somebody else."""
    own = {name.casefold() for name in options.own}
    names = [name for name in options.names if name.casefold() not in own]
    companies = [name for name in options.companies if name.casefold() not in own]
    if not names and not companies:
        return lambda row: None
    anybody = re.compile(_any_of([*names, *companies]), re.IGNORECASE)
    claims = [re.compile(pattern, re.IGNORECASE) for pattern in _claims(names, companies)]

    def judge(row: Row) -> Finding | None:
        for answer in answers_of(row):
            if not anybody.search(answer):
                continue
            for claim in claims:
                for match in claim.finditer(answer):
                    if not _is_quoted(answer, match.start()):
                        return Finding("claims another identity", f"{' '.join(match[0].split())!r}")
        return None

    return judge


def _claims(names: list[str], companies: list[str]) -> list[str]:
    """The patterns: being somebody, being made by somebody, somebody being one's maker."""
    found = []
    if names:
        apposition = rf"(?:{_CLAUSE}{{1,60}},\s*)?"
        found += [
            rf"{_I_AM}{_BETWEEN}[\s,:\-–—*_“\"(]+{_any_of(names)}",
            # `As ChatGPT, I …` or `As ChatGPT, made by OpenAI, I …`, but not `as Siri does`.
            rf"\b(?:as|como|en tant que|als)\s+{_any_of(names)}\s*,\s*{apposition}(?:i|my|yo|je|ich|eu)\b",
            rf"\A\W*{_any_of(names)} here\b",
        ]
    if companies:
        company = _any_of(companies)
        found += [
            rf"{_ITSELF}{_CLAUSE}{{0,80}}?\b{_MADE}\b{_CLAUSE}{{0,40}}?{company}",
            rf"\b(?:my|our) (?:creators?|makers?|developers?|owners?|company|team)\b{_CLAUSE}{{0,30}}?{company}",
            rf"{company}{_CLAUSE}{{0,30}}?\b(?:created|developed|trained|made|built|designed|programmed) me\b",
            rf"{_I_AM}{_BETWEEN}\s+{company}['’]s\b",
        ]
    return found


def _any_of(names: Sequence[str]) -> str:
    spelled = (
        r"[\s\-]*".join(re.escape(word) for word in name.split()) for name in sorted(names, key=len, reverse=True)
    )
    return rf"(?<!\w)(?:{'|'.join(spelled)})(?!\w)"


def _is_quoted(answer: str, position: int) -> bool:
    """Whether a place lies inside of quotation marks on its line, or inside a code block."""
    if answer.count("```", 0, position) % 2:
        return True
    line = answer[answer.rfind("\n", 0, position) + 1 : position]
    return line.count('"') % 2 == 1 or line.count("“") > line.count("”") or line.count("«") > line.count("»")
