"""Files damaged at random, as disks, copies and people do it; the same `random.Random`, the same damage."""

import copy
import json
import random

ODD_VALUES = (None, True, -1, 0, 7, 10**30, 1.5, float("nan"), float("inf"), "", "x", "../x", [], [[]], {}, {"a": 1},
              "9" * 40)


def rounds(kind, count):
    """Generators of random numbers, one a damage."""
    return [random.Random(f"{kind} {i}") for i in range(count)]


def damage(path, rng):
    """Changes a file's bytes; returns whether it is another file now."""
    before = path.read_bytes()
    data = bytearray(before)
    kind = rng.choice(["bytes", "cut", "empty", "insert", "zeros", "repeat", "head"])
    place = rng.randrange(max(len(data), 1))
    if kind == "bytes":
        for _ in range(rng.choice([1, 1, 10, 100])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "head":
        for _ in range(rng.choice([1, 5])):
            data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
    elif kind == "cut":
        del data[place:]
    elif kind == "empty":
        data.clear()
    elif kind == "insert":
        data[place:place] = rng.randbytes(rng.choice([1, 7, 4096]))
    elif kind == "zeros":
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    else:
        data[place:place] = data[: rng.randrange(1, 2048)]
    path.write_bytes(data)
    return bytes(data) != before


def damage_values(path, rng):
    """Changes values of a file of JSON, of lines of JSON, or of a safetensors header, which stays readable as such;
    returns whether it is another file now."""
    before = path.read_bytes()
    if path.suffix == ".safetensors":
        length = int.from_bytes(before[:8], "little")
        header = json.dumps(changed(json.loads(before[8 : 8 + length]), rng)).encode()
        after = len(header).to_bytes(8, "little") + header + before[8 + length :]
    elif path.suffix == ".jsonl":
        lines = changed([json.loads(line) for line in before.splitlines()], rng)
        after = "\n".join(map(json.dumps, lines if isinstance(lines, list) else [lines])).encode()
    else:
        after = json.dumps(changed(json.loads(before), rng)).encode()
    path.write_bytes(after)
    return after != before


def swap(first, second):
    """Two files change places."""
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def changed(value, rng):
    """A JSON value with one to three places in it set to something odd, left out, doubled or called otherwise."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        *way, last = rng.choice(list(_places(value, ())) or [(None,)])
        if last is None:
            return rng.choice(ODD_VALUES)
        place = value
        for key in way:
            place = place[key]
        how = rng.choice(["set", "set", "leave out", "double"])
        if how == "set":
            place[last] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif how == "leave out":
            del place[last]
        elif isinstance(place, list):
            place.append(copy.deepcopy(place[last]))
        else:
            place[f"{last}x"] = place.pop(last)
    return value


def _places(value, way):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*way, key)
        yield from _places(inner, (*way, key))
