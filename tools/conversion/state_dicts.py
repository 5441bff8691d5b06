"""Which weights of a file are meant: nested state dictionaries, prefixes of names, wrappers of modules.

A training script saves {"ema": {...}, "generator": {...}}, an all-in-one file has model.diffusion_model.NAME beside
vae.NAME, and parallel or compiled modules put a part of their own into every name. A file with one set of weights is
read whatever that is called; of several the user chooses one, and the others are said to be left out.
"""

from collections.abc import Mapping

# Parts that wrappers of modules put into names, anywhere; no name of a network has one of them.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"})
# What stands before all names of a network in a file that holds it as a part of something.
PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "model.", "transformer.", "dit.", "vae.",
            "first_stage_model.", "text_encoder.", "text_encoders.umt5xxl.transformer.", "generator.",
            "generator_ema.", "ema.", "ema_model.", "ema_state_dict.", "state_dict.")
_LONGEST_FIRST = sorted(PREFIXES, key=len, reverse=True)
_MAX_DEPTH = 4


def find_state_dicts(content, is_tensor):
    """({key: {name: tensor}}, [keys of all else]) in what a file holds; keys are the nested ones joined by dots.

    A state dictionary is a mapping from texts to tensors alone. The states of an optimiser are none: their keys are
    numbers.

    Raises:
        ValueError: there is none; the message goes on from the file's name.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"holds a {type(content).__name__}, expected tensors by name")
    found, others = {}, []
    _collect(content, "", is_tensor, found, others, _MAX_DEPTH)
    if not found:
        odd = [f"{name} ({type(value).__name__})" for name, value in content.items() if not is_tensor(value)]
        raise ValueError(f"holds more than tensors by name: {', '.join(odd[:10])}" if odd else "holds no tensors")
    return found, others


def _collect(content, path, is_tensor, found, others, depth):
    if content and all(isinstance(name, str) and is_tensor(value) for name, value in content.items()):
        found[path] = dict(content)
        return
    inner = {key: value for key, value in content.items()
             if depth and isinstance(value, Mapping) and all(isinstance(name, str) for name in (key, *value))}
    for key, value in content.items():
        where = f"{path}.{key}" if path else str(key)
        before, inside = len(found), []
        if key in inner:
            _collect(value, where, is_tensor, found, inside, depth - 1)
        others += inside if len(found) > before else [where]


def split_prefixes(state_dicts):
    """{key: {bare name: tensor}}: every state dictionary cut by the prefixes of its names, wrappers taken out.

    The key of a part is that of its state dictionary, and where that has names of several prefixes the prefix too.

    Raises:
        ValueError: two names that are the same without wrappers.
    """
    result = {}
    for key, state in state_dicts.items():
        parts = {}
        for name, tensor in state.items():
            prefix, bare = split_name(name)
            part = parts.setdefault(prefix, {})
            if bare in part:
                raise ValueError(f"{name} is there twice, once in a wrapper of its module")
            part[bare] = tensor
        for prefix, part in parts.items():
            label = key if len(parts) == 1 else ".".join(filter(None, (key, prefix.removesuffix("."))))
            result[label] = part
    return result


def split_name(name):
    """(prefix, name without prefix and wrappers) of a tensor."""
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    prefix = ""
    while found := next((known for known in _LONGEST_FIRST if name.startswith(known)), ""):
        prefix, name = prefix + found, name.removeprefix(found)
    return prefix, name


def choose(path, sets, key):
    """The one set of weights that is meant, of {key: {name: tensor}}, and what is left out as {reason: names}.

    Raises:
        ValueError: there are none, or several and `key` is None, or none of that key.
    """
    if not sets:
        raise ValueError(f"{path} holds no weights of a network (an adapter is converted with lora)")
    listed = ", ".join(f"{name or repr('')} ({len(tensors)} tensors)" for name, tensors in sets.items())
    if key is None and len(sets) == 1:
        return next(iter(sets.values())), {}
    if key is None:
        raise ValueError(f"{path} holds several sets of weights, choose one with --key: {listed}")
    if key not in sets:
        raise ValueError(f"--key is {key!r}; {path} holds {listed}")
    left = {f"not chosen by --key {key}": [name or "names without a prefix" for name in sets if name != key]}
    return sets[key], left if len(sets) > 1 else {}
