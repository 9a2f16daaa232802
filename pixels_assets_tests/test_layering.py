"""Imports run one way: dicom <- intake <- lake <- dicomweb; lake <- engines <- orchestration <- definitions <- runs <- api, cli."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "pixels_assets"
FLOORS = (
    ("errors",),
    ("settings", "imports"),
    ("dicom",),
    ("intake",),
    ("lake",),
    ("dicomweb",),
    ("engines",),
    ("orchestration",),
    ("definitions",),
    ("runs",),
    ("api", "cli"),
)
"""From the ground up. A module imports from its own floor and from those below."""


def _name(file):
    return ".".join(file.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(file): ast.parse(file.read_bytes()) for file in sorted(ROOT.rglob("*.py"))}
"""Syntax tree by dotted name."""


def imported(module):
    """Full names of what a module imports, inside functions and for type checking too: `from a import b` gives ``a.b``."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@cache
def own_imports(module):
    """Modules of the package that a module imports."""
    names = {name for name in imported(module) if name.split(".")[0] == "pixels_assets"}
    return frozenset(name if name in MODULES else name.rpartition(".")[0] for name in names)


def floor(module):
    piece = module.split(".")[1]
    found = [number for number, pieces in enumerate(FLOORS) if piece in pieces]
    assert found, f"{module} is on no floor of {FLOORS}"
    return found[0]


def closure(module):
    """All modules of the package that using a module may import, itself included.

    The root package is left out: it hands out `Catalog` when asked for it, and imports nothing else (the last test here).
    """
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in reached and name != "pixels_assets":
            reached.add(name)
            waiting += [*own_imports(name), name.rpartition(".")[0]]
    return reached


def third_parties(modules):
    return {name.split(".")[0] for module in modules for name in imported(module)}


def inside(package):
    return [module for module in MODULES if module == f"pixels_assets.{package}" or module.startswith(f"pixels_assets.{package}.")]


def test_the_package_is_seen_whole():
    assert {"pixels_assets", "pixels_assets.settings", "pixels_assets.engines.worker", "pixels_assets.orchestration.assets.extract"} <= MODULES.keys()


@pytest.mark.parametrize("module", [module for module in MODULES if module != "pixels_assets"])
def test_no_module_imports_from_a_higher_floor(module):
    higher = [name for name in own_imports(module) if name != "pixels_assets" and floor(name) > floor(module)]
    assert not higher


def test_no_module_imports_itself_in_a_circle():
    for module in MODULES:
        direct = set(own_imports(module))
        assert not [name for name in direct if module in closure(name)], f"{module} comes back to itself"


@pytest.mark.parametrize("package", ["dicom", "intake"])
def test_the_lowest_layers_know_neither_tables_nor_dagster(package):
    assert inside(package)
    assert not third_parties(inside(package)) & {"dagster", "deltalake", "polars", "pyarrow", "duckdb"}


@pytest.mark.parametrize("package", ["errors", "settings", "dicom", "intake", "lake", "engines"])
def test_dagster_stays_in_the_glue(package):
    assert not {name for name in third_parties(inside(package)) if name.startswith("dagster")}


def test_what_a_worker_may_import_has_no_dagster_no_polars_and_no_deltalake():
    workers = closure("pixels_assets.engines.worker")
    assert "pixels_assets.dicom.reader" in workers, "the closure is not followed"
    assert not third_parties(workers) & {"dagster", "polars", "deltalake", "duckdb", "pyspark"}


def test_a_worker_that_has_started_holds_none_of_them_either():
    code = "import sys, pixels_assets.engines.worker; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True).stdout.split()
    assert "pydicom" in loaded
    assert not {"dagster", "polars", "deltalake", "duckdb", "pyspark"} & set(loaded)


def test_only_the_spark_engine_imports_pyspark():
    assert {module for module in MODULES if third_parties([module]) & {"pyspark", "py4j"}} <= {"pixels_assets.engines.spark"}


def test_dagster_sees_annotations_as_they_are():
    postponed = [module for module in [*inside("orchestration"), "pixels_assets.definitions"] if "__future__.annotations" in imported(module)]
    assert not postponed


def test_importing_the_package_costs_no_library():
    code = "import sys; before = set(sys.modules); import pixels_assets, pixels_assets.settings; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True).stdout.split()
    foreign = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"pixels_assets"}
    assert not foreign
