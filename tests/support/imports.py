"""What the repository's files import, read from their text: importing them to find out would take seconds."""

import ast
from functools import cache
from pathlib import Path

from tests.support.paths import ROOT

FRAMEWORKS = ("mindspore", "torch")
# They import a framework themselves.
NEED_A_FRAMEWORK = {"mindformers": "mindspore", "diffusers": "torch", "peft": "torch", "triton": "torch"}


def modules_of(root, tops=("ospnext_ms", "tools")):
    """{dotted name: path} of the package and of tools/."""
    files = [path for top in tops for path in sorted((root / top).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports_of(modules):
    """{module: {module that it imports, at its top or inside a function}} of one tree."""
    graph = {}
    for module, path in modules.items():
        names = {name if name in modules else name.rpartition(".")[0] for name in imported_names(path)}
        graph[module] = {name for name in names if name in modules and name != module}
    return graph


@cache
def parsed(path):
    """The syntax tree of a file."""
    return ast.parse(Path(path).read_text(encoding="utf-8"))


@cache
def imported_names(path, at_import=False):
    """Dotted names that a file imports, `a.b.c` for `from a.b import c`; `at_import`: not in functions.

    pytest.importorskip counts as an import.
    """
    names, waiting = set(), [parsed(path)]
    while waiting:
        node = waiting.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        # No import stands below an expression, and importorskip is one.
        waiting += [child for child in ast.iter_child_nodes(node)
                    if isinstance(child, ast.stmt | ast.excepthandler | ast.Call)]
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "importorskip":
            names.add(node.args[0].value)
    return names


def frameworks_of(path):
    """Those of FRAMEWORKS that importing a file of the repository imports."""
    found, seen, waiting = set(), set(), [Path(path)]
    while waiting:
        for name in imported_names(waiting.pop(), at_import=True):
            top = name.partition(".")[0]
            found |= {NEED_A_FRAMEWORK.get(top, top)} & set(FRAMEWORKS)
            files = {file for file in _files_of(name) if file not in seen}
            seen |= files
            waiting += files
    return found


@cache
def _files_of(name):
    """The file of a module of the repository and those of the packages that it lies in; none for any other name."""
    parts = name.split(".")
    places = [ROOT.joinpath(*parts[:depth + 1]) for depth in range(len(parts))]
    candidates = [path for place in places for path in (place.with_suffix(".py"), place / "__init__.py")]
    return [path for path in candidates if path.is_file()]


def marks_of(path):
    """(marks that every test of a file has, marks that some may have), of `pytestmark` and of what it imports."""
    tree = parsed(path)
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
             and isinstance(node.value, ast.Attribute) and node.value.attr == "mark"}
    of_file = {node.attr for statement in tree.body if isinstance(statement, ast.Assign)
               and getattr(statement.targets[0], "id", None) == "pytestmark"
               for node in ast.walk(statement) if isinstance(node, ast.Attribute)}
    framework = {"framework"} if frameworks_of(path) else set()
    return (named & of_file) | framework, named | framework
