"""JSON values checked against type hints: what stands between a damaged manifest and an AttributeError."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = 2**63 - 1  # no count, size or id of ours is larger; numpy and ONNX could not take one
NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}


def decode(kind: type[T], value: object, where: str) -> T:
    """Read a JSON value as the dataclass `kind`, all the way down; keys it does not know are skipped.

    `where` names the value in errors ("model.layers"). Raises ValueError for a missing key, a wrong type, an integer
    beyond 64 bits, or whatever a dataclass's own __post_init__ refuses.
    """
    read = _read(kind, value, where)
    assert isinstance(read, kind)
    return read


def _read(kind: Any, value: object, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(arguments, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(value, where, "a list")
        return [_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _object(kind, value, where)
    return _plain(kind, value, where)


_hints = functools.cache(get_type_hints)


def _object(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    hints = _hints(kind)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        inner = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            found[field.name] = _read(hints[field.name], value[field.name], inner)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f'"{inner}" is missing')
    return kind(**found)


def _union(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    reason = ValueError(f'"{where}" is of no expected type')
    for kind in kinds:
        if kind is not type(None):
            try:
                return _read(kind, value, where)
            except ValueError as error:
                reason = error
    raise reason


def _plain(kind: Any, value: object, where: str) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and abs(value) > LARGEST:  # type: ignore[arg-type]
        raise ValueError(f'"{where}" is beyond 64 bits')
    if kind is float and (number or isinstance(value, float)):
        return float(value)  # type: ignore[arg-type]
    if (kind is int and number) or (kind is not int and isinstance(value, kind)):
        return value
    raise _wrong(value, where, NAMES[kind])


def _wrong(value: object, where: str, expected: str) -> ValueError:
    return ValueError(f'"{where}" is {reprlib.repr(value)}; expected {expected}')
