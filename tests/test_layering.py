"""Imports point one way: the order of docs/design.md, and no circle between files or between folders."""

from collections import defaultdict

import pytest

from tests.support.imports import imports_of, modules_of
from tests.support.paths import ROOT

# A line may import the lines below it, never one above. Of docs/design.md, "Layout".
LAYERS = (
    "ospnext_ms.__main__", "ospnext_ms.commands", "ospnext_ms.serving", "ospnext_ms.planning", "ospnext_ms.evaluation",
    "ospnext_ms.post_training", "ospnext_ms.training", "ospnext_ms.preparation", "ospnext_ms.generation",
    "ospnext_ms.build", "ospnext_ms.data", "ospnext_ms.reporting", "ospnext_ms.config", "ospnext_ms.runtime",
    "ospnext_ms.parallel", "ospnext_ms.quant", "ospnext_ms.storage", "ospnext_ms.models", "ospnext_ms.diffusion",
    "ospnext_ms.kernels", "ospnext_ms.skiparse", "ospnext_ms.hif8_format", "ospnext_ms",
)
# Folders of tools/ and what of tools/ each may import.
TOOLS = {
    "tools.conversion": set(),
    "tools.torch_reference": set(),
    "tools.torch_reference.gpu": {"tools.torch_reference"},
    "tools.ascend_dry_run": set(),
    "tools.tiny_family": {"tools.torch_reference"},
    "tools.experiments": {"tools.tiny_family", "tools.torch_reference", "tools.torch_reference.gpu"},
    "tools.convert_checkpoint": {"tools.conversion"},
}
LOOSE_AT_TOP = 4


def place_of(module):
    """The layer of the package, or the folder of tools/, that a module belongs to."""
    if module.startswith("ospnext_ms"):
        return ".".join(module.split(".")[:2])
    return max((place for place in TOOLS if module == place or module.startswith(f"{place}.")), key=len,
               default=module)


def upward_imports(modules, graph):
    """["a imports b"] where b stands above a, or where a part of tools/ takes from another that it may not know."""
    found = []
    for module in modules:
        place = place_of(module)
        for target in sorted(graph[module]):
            other = place_of(target)
            if other == place or other == "tools":
                continue
            if place.startswith("ospnext_ms"):
                allowed = other.startswith("ospnext_ms") and LAYERS.index(other) > LAYERS.index(place)
            else:
                allowed = other.startswith("ospnext_ms") or other in TOOLS.get(place, set())
            if not allowed:
                found.append(f"{module} imports {target}")
    return found


def circles_of(graph):
    """The strongly connected groups of more than one node."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node):]
            del stack[stack.index(node):]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def folders_of(graph):
    """The graph of folders: who imports whom, whatever file."""
    def folder(module):
        return module if module in LAYERS else module.rpartition(".")[0]

    result = defaultdict(set)
    for module, targets in graph.items():
        result[folder(module)] |= {folder(target) for target in targets} - {folder(module)}
    return result


@pytest.fixture(scope="module")
def tree():
    modules = modules_of(ROOT)
    return modules, imports_of(modules)


def test_imports_point_downwards(tree):
    assert upward_imports(*tree) == []


def test_there_is_no_circle_between_files(tree):
    assert circles_of(tree[1]) == []


def test_there_is_no_circle_between_folders(tree):
    assert circles_of(folders_of(tree[1])) == []


def test_every_part_of_the_package_has_a_layer(tree):
    assert {place_of(module) for module in tree[0] if module.startswith("ospnext_ms")} <= set(LAYERS)


def test_few_modules_stand_loose_at_the_top():
    loose = [path.name for path in (ROOT / "ospnext_ms").glob("*.py") if not path.name.startswith("__")]
    assert len(loose) <= LOOSE_AT_TOP, loose


def test_tests_import_no_test_file():
    graph = imports_of(modules_of(ROOT, ["tests"]))
    of_tests = [(a, b) for a in graph for b in graph[a] if b.rpartition(".")[2].startswith(("test_", "conftest"))]
    assert of_tests == []


def _write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    modules = modules_of(folder)
    return modules, imports_of(modules)


def test_a_planted_upward_import_is_found(tmp_path):
    tree = _write(tmp_path, {
        "ospnext_ms/models/dit.py": "def f():\n    from ospnext_ms.training import loop\n",
        "ospnext_ms/training/loop.py": "",
        "tools/conversion/names.py": "import tools.experiments.study\n",
        "tools/experiments/study.py": "import ospnext_ms.models.dit\n",
    })
    assert upward_imports(*tree) == ["ospnext_ms.models.dit imports ospnext_ms.training.loop",
                                     "tools.conversion.names imports tools.experiments.study"]


def test_a_planted_circle_is_found(tmp_path):
    _, graph = _write(tmp_path, {
        "ospnext_ms/data/a.py": "from ospnext_ms.data import b\n",
        "ospnext_ms/data/b.py": "import ospnext_ms.data.a\n",
        "ospnext_ms/models/x.py": "import ospnext_ms.kernels.y\n",
        "ospnext_ms/kernels/y.py": "",
        "ospnext_ms/kernels/z.py": "import ospnext_ms.models.x\n",
        "ospnext_ms/models/__init__.py": "", "ospnext_ms/kernels/__init__.py": "", "ospnext_ms/data/__init__.py": "",
    })
    assert circles_of(graph) == [["ospnext_ms.data.a", "ospnext_ms.data.b"]]
    assert circles_of(folders_of(graph)) == [["ospnext_ms.kernels", "ospnext_ms.models"]]
