"""Which JSON schemas an answer can be held to: what cannot be enforced is refused by name, wherever it stands.

The grammar compiler refuses much of it too, but passes over what it takes for an annotation and what it does not use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from gateway.errors import ApiError
from gateway.requests.parse import invalid

Schema = dict[str, Any]

FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
_TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
_OF_TYPE = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    "object": (
        *("properties", "patternProperties", "additionalProperties"),
        *("required", "minProperties", "maxProperties"),
    ),
}
_TYPE_OF = {keyword: kind for kind, keywords in _OF_TYPE.items() for keyword in keywords}
_NOT_ENFORCED = frozenset(
    (
        *("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties"),
        *("propertyNames", "dependencies", "dependentRequired", "dependentSchemas", "not", "if", "then", "else"),
        *("contentEncoding", "contentMediaType", "contentSchema", "$vocabulary", "x-guidance"),
        *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
    )
)
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_MAX_BRANCHES = 64  # of a oneOf that are compared, each with each
# The compiler's formats are wider than those of strict readers, which know leap years, leap seconds and the year 0.
_LEAP_YEAR = "([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DATE = f"^([1-9]...-(0[13-9]|1|02-[01]|02-2[0-8])|{_LEAP_YEAR}-02-29)"
_BESIDE_FORMAT = {
    "date": (_DATE,),
    "date-time": (_DATE, "^.{17}[0-5]"),
    "time": ("^.{6}[0-5]",),
    "email": ("^[^@]{1,64}@",),
    "hostname": ("^([^-]|-[^-])*$",),
}
_NO_STRAY_DOTS = r"^(?!\.)(?!.*\.\.)"  # how zod's pattern of an email begins: the format says as much


def enforceable(root: Schema, where: str) -> Schema:
    """A copy in the compiler's terms. Raises ApiError (400) with the path of the first keyword at fault."""
    root = json.loads(json.dumps(root))
    places = list(_places(root, where))
    references = _References(root, places)
    for place in places:
        _check(place, references)
    branches = _Branches()
    for place in places:
        _sharpen(place.schema, references, branches)
    return root


@dataclass(frozen=True, slots=True)
class _Place:
    """A schema and its name within `parent`. Paths are put together for faults only: all of them at once could be many
    times as long as the schema."""

    parent: _Place | None
    name: str
    schema: Schema

    @property
    def path(self) -> str:
        names, place = [self.name], self.parent
        while place is not None:
            names.append(place.name)
            place = place.parent
        return ".".join(reversed(names))

    def fault(self, keyword: str, problem: str) -> ApiError:
        path = f"{self.path}.{keyword}"
        return invalid(path, f"Invalid schema at {path}: '{keyword}' {problem}.", "invalid_json_schema")


def _places(root: Schema, where: str) -> Iterator[_Place]:
    """Every schema within `root`, that itself first."""
    waiting = [_Place(None, where, root)]
    while waiting:
        place = waiting.pop()
        yield place
        for name, part in reversed(list(_parts(place))):
            if isinstance(part, dict):
                waiting.append(_Place(place, name, part))
            elif not isinstance(part, bool):
                raise place.fault(name, "must be an object or a boolean")


def _parts(place: _Place) -> Iterator[tuple[str, Any]]:
    schema = place.schema
    for name in schema.keys() & {*_MAPS, *_LISTS}:
        if not isinstance(schema[name], dict if name in _MAPS else list):
            raise place.fault(name, f"must be {'an object' if name in _MAPS else 'a list'}")
    for name in _MAPS:
        yield from ((f"{name}.{key}", part) for key, part in schema.get(name, {}).items())
    for name in (*_LISTS, "items"):
        if isinstance(schema.get(name), list):
            yield from ((f"{name}[{index}]", part) for index, part in enumerate(schema[name]))
    for name in _SINGLE:
        if name in schema and not isinstance(schema[name], list):
            yield name, schema[name]


class _References:
    """What each $ref of one schema stands for."""

    def __init__(self, root: Schema, places: list[_Place]) -> None:
        self._root = root
        self._known = {id(place.schema) for place in places}
        self._anchors = {str(place.schema["$anchor"]): place.schema for place in places if "$anchor" in place.schema}
        self._ending: set[int] = set()  # chains from here end

    def is_root(self, schema: Schema) -> bool:
        return schema is self._root

    def check(self, place: _Place) -> None:
        seen, at = set(), place.schema
        while "$ref" in at and id(at) not in self._ending:
            if id(at) in seen:
                raise place.fault("$ref", "refers to itself")
            seen.add(id(at))
            target = self.target(at["$ref"])
            if isinstance(target, bool):
                break
            if not isinstance(target, dict) or id(target) not in self._known:
                problem = f"must refer to a schema within this one, but is {json.dumps(at['$ref'])[:200]}"
                raise place.fault("$ref", problem)
            at = target
        self._ending |= seen

    def target(self, reference: Any) -> Any:
        """None where it is not within the schema."""
        if not isinstance(reference, str):
            return None
        base, _, fragment = reference.partition("#")
        if base and base != str(self._root.get("$id", "")).partition("#")[0]:
            return None
        if fragment and not fragment.startswith("/"):
            return self._anchors.get(fragment)
        target: Any = self._root
        for key in unquote(fragment).split("/")[1:]:
            target = _member(target, key.replace("~1", "/").replace("~0", "~"))
        return target

    def resolved(self, schema: Any) -> Any:
        while isinstance(schema, dict) and schema.keys() == {"$ref"}:
            schema = self.target(schema["$ref"])
        return schema


def _member(value: Any, key: str) -> Any:
    if isinstance(value, list) and key.isascii() and key.isdigit() and len(key) < 10 and int(key) < len(value):
        return value[int(key)]
    return value.get(key) if isinstance(value, dict) else None


# checks


def _check(place: _Place, references: _References) -> None:
    schema, types = place.schema, _types(place)
    families = {*types, *map(_family, types)}
    for keyword in schema:
        if keyword in _NOT_ENFORCED and not (keyword == "uniqueItems" and schema[keyword] is False):
            raise place.fault(keyword, "cannot be enforced by this server")
        if types and _TYPE_OF.get(keyword, types[0]) not in families:
            raise place.fault(keyword, f"says nothing of values of type {' or '.join(types)}")
    if schema.get("format", FORMATS[0]) not in FORMATS:
        raise place.fault("format", f"cannot be enforced by this server unless it is one of {', '.join(FORMATS)}")
    if "$id" in schema and not references.is_root(schema):
        raise place.fault("$id", "is supported at the root of the schema only")
    references.check(place)
    _check_arrays(place)
    _check_numbers(place)
    _check_num_properties(place)


def _family(kind: str) -> str:
    return "number" if kind == "integer" else kind


def _types(place: _Place) -> list[str]:
    """Those that `type` names; empty where any will do."""
    given = place.schema.get("type", [])
    types = [given] if isinstance(given, str) else given
    if not isinstance(types, list) or not all(name in _TYPES for name in types):
        problem = f"must be one of {', '.join(_TYPES)}, or a list of them, but is {json.dumps(given)[:100]}"
        raise place.fault("type", problem)
    return types


def _check_arrays(place: _Place) -> None:
    schema = place.schema
    if "additionalItems" in schema and not isinstance(schema.get("items"), list):
        raise place.fault("additionalItems", "has no effect unless 'items' is a list")
    if "prefixItems" in schema and isinstance(schema.get("items"), list):
        raise place.fault("items", "must not be a list beside 'prefixItems'")


def _check_numbers(place: _Place) -> None:
    schema = place.schema
    for keyword, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(keyword), bool) and bound not in schema:
            raise place.fault(keyword, f"must be a number unless '{bound}' stands beside it")
    step = schema.get("multipleOf", 1)
    if not isinstance(step, int | float) or step <= 0:
        raise place.fault("multipleOf", "must be a number above 0")


def _check_num_properties(place: _Place) -> None:
    """A key that is not listed may come twice, and is then one property."""
    num_certain = 1 + len({str(name) for name in _required(place.schema)})
    least = place.schema.get("minProperties", 0)
    if isinstance(least, int | float) and least > num_certain:
        raise place.fault("minProperties", f"cannot be enforced above {num_certain} with these required properties")


def _required(schema: Schema) -> list[Any]:
    required = schema.get("required")
    return required if isinstance(required, list) else []


# in the compiler's terms


def _sharpen(schema: Schema, references: _References, compared: _Branches) -> None:
    schema.pop("uniqueItems", None)
    kind, pattern = schema.get("format"), schema.get("pattern")
    for narrower in _BESIDE_FORMAT.get(kind or "", ()):
        _add(schema, {"pattern": narrower})
    if kind == "email" and isinstance(pattern, str) and pattern.startswith(_NO_STRAY_DOTS):
        schema["pattern"] = "^" + pattern.removeprefix(_NO_STRAY_DOTS)
    branches = schema.get("oneOf", [])
    if len(branches) <= _MAX_BRANCHES and any(isinstance(each, dict) and "$ref" in each for each in branches):
        resolved = [references.resolved(each) for each in branches]
        if all(compared.exclude(*pair) for pair in combinations(resolved, 2)):
            _add(schema, {"anyOf": schema.pop("oneOf")})


def _add(schema: Schema, part: Schema) -> None:
    schema["allOf"] = [*schema.get("allOf", []), part]


class _Branches:
    """Which schemas of one document exclude each other. Each pair is looked at once: many a oneOf may list the same."""

    def __init__(self) -> None:
        self._traits: dict[int, tuple[set[str], dict[str, set[str]]]] = {}
        self._known: dict[tuple[int, int], bool] = {}

    def exclude(self, first: Any, second: Any) -> bool:
        """Whether no value can be both, as their types show, or a required property with other constants in each."""
        if not isinstance(first, dict) or not isinstance(second, dict):
            return False
        pair = (id(first), id(second))
        if pair not in self._known:
            self._known[pair] = _exclude(self._traits_of(first), self._traits_of(second))
        return self._known[pair]

    def _traits_of(self, schema: Schema) -> tuple[set[str], dict[str, set[str]]]:
        if id(schema) not in self._traits:
            self._traits[id(schema)] = _type_set(schema), _tags(schema)
        return self._traits[id(schema)]


def _exclude(first: tuple[set[str], dict[str, set[str]]], second: tuple[set[str], dict[str, set[str]]]) -> bool:
    (types, tags), (other_types, others) = first, second
    if types and other_types and not types & other_types:
        return True
    if not types == other_types == {"object"}:
        return False
    return any(not values & others[name] for name, values in tags.items() if name in others)


def _type_set(schema: Schema) -> set[str]:
    given = schema.get("type", [])
    return {_family(kind) for kind in ([given] if isinstance(given, str) else given)}


def _tags(schema: Schema) -> dict[str, set[str]]:
    """Required properties whose values are some of a few strings."""
    required = {name for name in _required(schema) if isinstance(name, str)}
    found = {}
    for name, part in schema.get("properties", {}).items():
        if name in required and isinstance(part, dict):
            values = [part["const"]] if "const" in part else part.get("enum")
            if isinstance(values, list) and all(isinstance(value, str) for value in values):
                found[name] = set(values)
    return found
