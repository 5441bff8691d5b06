"""JSON as people write it by hand: what a reader would take silently for something else is an error."""

import json
from typing import NoReturn


def parse(text: str) -> object:
    """Value of a JSON text.

    Raises:
        ValueError: not JSON, a key given twice in one object, NaN or Infinity (which JSON has not), half a surrogate
            pair (which no file name or text has), or deeper nesting than can be read.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: too deeply nested") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half a surrogate pair, {error.object[error.start]!r}, which is no character") \
            from error
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    repeated = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
    if repeated is not None:
        raise ValueError(f"the key {repeated!r} is given twice")
    return dict(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
