"""In which keys two configurations differ, as lines that name each with both values."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_ABSENT = "not given"


def differences(then: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str] = ()) -> list[str]:
    """"a.b: VALUE then, VALUE now" for every key of two nested dicts whose values are not equal.

    Args:
        may_change: keys ("a.b", whole sections or single ones; those of list members without index) that need not be
            equal.
    """
    return [f"{key}: {_show(before)} then, {_show(after)} now" for key, before, after in
            _differing(then, now, may_change)]


def _differing(then: Any, now: Any, may_change: Collection[str], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if re.sub(r"\[\d+\]", "", path) in may_change:
        return
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        members = [(f"{path}.{key}" if path else key, then.get(key, _ABSENT), now.get(key, _ABSENT))
                   for key in {**then, **now}]
    elif isinstance(then, tuple) and isinstance(now, tuple) and len(then) == len(now):
        members = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(then, now, strict=True))]
    else:
        if then != now:
            yield path, then, now
        return
    for name, before, after in members:
        yield from _differing(before, after, may_change, name)


def _show(value: Any) -> str:
    return value if value is _ABSENT else json.dumps(value, ensure_ascii=False)
