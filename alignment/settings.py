"""Strict settings: values live in ``conf/*.yaml``, once; a model here gives type, bound and meaning.

A field has one of four roles, and the role decides what the field does to an artifact's identity:

========== =====================================================================================
role       meaning
========== =====================================================================================
identity   changes the result; part of the fingerprint
execution  changes only how or where the result is computed (workers, micro-batch, tracker …)
reference  names another artifact, directory or hub repository; its *digest* enters the fingerprint
text       free text or a path typed by a person; identity, and protected from Hydra's grammar
========== =====================================================================================

Nothing has a default here: a value that is missing from the YAML is an error, so that the
composed configuration is the whole truth. Importing this module costs pydantic and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignment.errors import UserError, nearest, secrets_of_environment

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^/@\s]+@\S*", re.IGNORECASE)
"""An address that begins with a name or password."""

Role = Literal["identity", "execution", "reference", "text"]


def _field(role: Role, doc: str, bounds: dict[str, Any]) -> Any:
    return Field(description=doc, json_schema_extra={"role": role}, **bounds)


def identity(doc: str, **bounds: Any) -> Any:
    """A field that changes the result. ``bounds`` are pydantic's: ``ge``, ``gt``, ``le``, ``lt``, …"""
    return _field("identity", doc, bounds)


def later(doc: str, **bounds: Any) -> Any:
    """An identity field that came after artifacts were made: null, its default, leaves their fingerprints alone."""
    return Field(default=None, description=doc, json_schema_extra={"role": "identity", "later": True}, **bounds)


def execution(doc: str, **bounds: Any) -> Any:
    """A field that changes only how the result is computed; it never enters a fingerprint."""
    return _field("execution", doc, bounds)


def reference(doc: str, kinds: Sequence[str] = (), **bounds: Any) -> Any:
    """A field that names what a stage reads: ``step: latest: run: dir: hf: mini:``.

    ``kinds`` are those of the artifacts that may stand there (``artifacts.Kind``), which is checked before anything
    runs; without them the stage alone decides.
    """
    return Field(description=doc, json_schema_extra={"role": "reference", "kinds": [*kinds]}, **bounds)


def text(doc: str, **bounds: Any) -> Any:
    """Free text or a path, which reaches the settings exactly as it was typed."""
    return _field("text", doc, bounds)


def place(doc: str, **bounds: Any) -> Any:
    """A path that only says where something lies: typed freely like text, no part of the identity."""
    return Field(description=doc, json_schema_extra={"role": "execution", "raw": True}, **bounds)


class Settings(BaseModel):
    """Frozen, unknown keys refused, no coercion of one type into another beyond int → float, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings"):
        """Validate a plain mapping. Raises :class:`UserError` naming each key by its dotted path.

        Settings are kept in records and told to trackers: a key or password in one of them is refused.
        """
        _refuse_secrets(values, where, secrets_of_environment())
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _explain(cls, error, where) from None


def _refuse_secrets(values: Any, where: str, secrets: Mapping[str, str], key: str = "") -> None:
    inner = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for name, value in inner:
        _refuse_secrets(value, where, secrets, f"{key}.{name}" if key else str(name))
    if isinstance(values, str):
        told = next((name for name, secret in secrets.items() if secret in values), None)
        if told is not None or ADDRESS.fullmatch(values):
            raise UserError(
                f"{key}: holds {f'the value of {told}' if told else 'an address with a name or password in it'}",
                cause=f"({where}) Settings are kept in records and told to trackers.",
                remedy="Keys and passwords stand in the environment alone, or in ~/.netrc.",
            )


def reference_keys(model: type[Settings]) -> set[str]:
    """The dotted keys that hold references; unlike text they may be swept with -m."""
    return {info.key for info in describe(model) if info.role == "reference"}


def role_of(field: Any) -> Role:
    """The role given to a pydantic field; one without a role is part of the identity."""
    return (field.json_schema_extra or {}).get("role", "identity")


def _is_later(field: Any) -> bool:
    return bool((field.json_schema_extra or {}).get("later", False))


def _is_raw(field: Any) -> bool:
    return role_of(field) in ("text", "reference") or (field.json_schema_extra or {}).get("raw", False)


def _nested(annotation: Any) -> type[Settings] | None:
    """The Settings class inside an annotation such as ``Engine`` or ``Engine | None``."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Settings):
            return candidate
    return None


class FieldInfo(BaseModel):
    """One line of ``--help``: dotted key, role, type, bounds, meaning."""

    key: str
    role: Role
    raw: bool
    type: str
    bounds: str
    doc: str


def describe(model: type[Settings], prefix: str = "") -> Iterator[FieldInfo]:
    """Every key of a settings class, depth first, in the order in which it is declared."""
    for name, field in model.model_fields.items():
        nested = _nested(field.annotation)
        if nested is not None and "list" not in str(field.annotation):
            yield from describe(nested, f"{prefix}{name}.")
        else:
            yield FieldInfo(
                key=prefix + name,
                role=role_of(field),
                raw=_is_raw(field),
                type=_type_name(field.annotation),
                bounds=_bounds(field.metadata),
                doc=field.description or "",
            )


def raw_keys(model: type[Settings]) -> set[str]:
    """The dotted keys whose values are taken as they are typed: text, places and references."""
    return {info.key for info in describe(model) if info.raw}


def list_keys(model: type[Settings]) -> set[str]:
    """The dotted keys that take several values."""
    return {info.key for info in describe(model) if info.type.startswith("list of")}


def identity_values(settings: Settings) -> dict[str, Any]:
    """The part of the settings that belongs to the fingerprint: identity and text, nested alike.

    References are left out: what they name enters by its digest, not by its spelling.
    """
    values: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        role, value = role_of(field), getattr(settings, name)
        if role in ("execution", "reference") or (value is None and _is_later(field)):
            continue
        values[name] = _identity_of(value)
    return values


def _identity_of(value: Any) -> Any:
    if isinstance(value, Settings):
        return identity_values(value)
    return [_identity_of(item) for item in value] if isinstance(value, list) else value


def references(settings: Settings) -> dict[str, str]:
    """Every reference in the settings by dotted key (``model.weights``, ``models.0``); nulls left out."""
    return {key: spelling for key, spelling, _ in _referring(settings)}


def reference_kinds(settings: Settings) -> dict[str, tuple[Any, ...]]:
    """The kinds that may stand for each of :func:`references`; empty where the field does not say."""
    return {key: tuple(field.json_schema_extra.get("kinds", ())) for key, _, field in _referring(settings)}


def _referring(settings: Settings, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Dotted key, spelling and field of every reference."""
    for name, field in type(settings).model_fields.items():
        value, key = getattr(settings, name), prefix + name
        if isinstance(value, Settings):
            yield from _referring(value, f"{key}.")
        elif isinstance(value, list) and any(isinstance(item, Settings) for item in value):
            for position, item in enumerate(value):
                yield from _referring(item, f"{key}.{position}.")
        elif role_of(field) == "reference" and isinstance(value, list):
            yield from ((f"{key}.{position}", spelling, field) for position, spelling in enumerate(value))
        elif role_of(field) == "reference" and value is not None:
            yield key, value, field


def _type_name(annotation: Any) -> str:
    """``Literal["a", "b"] | None`` → ``a | b | null``."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    names = []
    for part in parts:
        if get_origin(part) is Literal:
            names += [str(choice) for choice in get_args(part)]
        elif part is type(None):
            names.append("null")
        elif get_origin(part) is list:
            names.append(f"list of {' | '.join(map(_type_name, get_args(part)))}")
        elif get_origin(part) is dict:
            names.append(" → ".join(map(_type_name, get_args(part))))
        else:
            names.append(part.__name__ if isinstance(part, type) and not get_args(part) else str(part))
    return " | ".join(names)


def _bounds(metadata: list[Any]) -> str:
    signs = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< ", "min_length": "length ≥ ", "max_length": "length ≤ "}
    parts = []
    for item in metadata:
        parts += [f"{sign}{getattr(item, name)}" for name, sign in signs.items() if hasattr(item, name)]
    return ", ".join(parts)


def _keys_at(model: type[Settings], path: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand where a path leads, through nested settings and lists of them."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            inner = _nested(field.annotation) or next(filter(None, map(_nested, get_args(field.annotation))), None)
            model = inner or model
    return list(model.model_fields)


def _explain(model: type[Settings], error: ValidationError, where: str) -> UserError:
    """Turn pydantic's report into one message: a line per key, with value, cause and remedy."""
    lines, remedies = [], []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or where
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: there is no such key")
            remedies.append(nearest(str(item["loc"][-1]), _keys_at(model, item["loc"][:-1])))
        elif item["type"] == "missing":
            lines.append(f"{key}: a value is needed")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{key}={item['input']!r}: {message[:1].lower()}{message[1:]}")
    remedy = " ".join(dict.fromkeys(remedies)) or "`--help` beside the stage shows every key with its type and bound."
    return UserError("\n".join(lines), cause=f"({where})", remedy=remedy)
