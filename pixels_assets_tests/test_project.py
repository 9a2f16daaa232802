"""The files around the code: packaging, constraints, make, text files."""

import ast
import configparser
import fnmatch
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PYTHON_FILES = [
    *sorted((ROOT / "pixels_assets").rglob("*.py")),
    *sorted((ROOT / "pixels_assets_tests").rglob("*.py")),
    *sorted((ROOT / "docs").rglob("*.py")),
]
MADE_HERE = {".venv", ".git", "var", "build", "dist", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}


def normal(name):
    """Name of a distribution as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def distribution(requirement):
    return normal(re.match(r"[A-Za-z0-9._-]+", requirement)[0])


def tracked():
    """Text files of the project."""
    for file in ROOT.rglob("*"):
        parts = file.relative_to(ROOT).parts
        if (
            file.is_file()
            and not MADE_HERE & set(parts)
            and not any(part.endswith(".egg-info") for part in parts)
            and file.suffix not in {".png", ".pyc"}
        ):
            yield file


def test_setup_cfg_repeats_nothing_of_pyproject():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert "metadata" not in parser
    declared = PROJECT["project"].keys() | {"install_requires", "extras_require", "python_requires", "entry_points"}
    assert not declared & set(parser["options"])
    assert "setuptools" not in PROJECT.get("tool", {})


def test_the_version_stands_in_both_places():
    import pixels_assets

    assert pixels_assets.__version__ == PROJECT["project"]["version"]


def test_constraints_are_versions_and_nothing_else():
    lines = [line for line in CONSTRAINTS if line and not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    assert len({distribution(line) for line in lines}) == len(lines)
    assert not [line for line in CONSTRAINTS if "://" in line]


def test_every_dependency_has_a_constraint():
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["test"]]
    held = {distribution(line) for line in CONSTRAINTS if line and not line.startswith("#")}
    assert {distribution(requirement) for requirement in wanted} <= held


def test_every_library_that_is_imported_is_a_dependency():
    declared = {distribution(requirement) for requirement in PROJECT["project"]["dependencies"]}
    providers = importlib.metadata.packages_distributions()
    imported = set()
    for file in (ROOT / "pixels_assets").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.split(".")[0] for name in names}
    foreign = imported - set(sys.stdlib_module_names) - {"pixels_assets"}
    assert "dagster" in foreign
    assert not [name for name in foreign if not {normal(provider) for provider in providers[name]} & declared]


@pytest.mark.parametrize("file", PYTHON_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_opens_with_what_it_holds(file):
    text = file.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert text.startswith(('"""', 'r"""'))


def test_text_files_hold_no_path_of_one_machine():
    wrong = [str(file) for file in tracked() if re.search(rb"/(?:home|root|Users|work)/[a-z]", file.read_bytes())]
    assert not wrong


def test_the_tests_are_not_installed():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    patterns = parser["options.packages.find"]["include"].split()
    packages = [".".join(file.parent.relative_to(ROOT).parts) for file in ROOT.glob("pixels_assets*/**/*.py")]
    installed = {package for package in packages if any(fnmatch.fnmatchcase(package, pattern) for pattern in patterns)}
    assert "pixels_assets.orchestration.assets" in installed
    assert installed == {package for package in packages if package.split(".")[0] == "pixels_assets"}
    data = {str(file.relative_to(ROOT / "pixels_assets")) for file in (ROOT / "pixels_assets").rglob("*.*") if file.suffix not in {".py", ".pyc"}}
    assert {name.strip() for name in parser["options.package_data"]["pixels_assets"].split(",")} == data


@pytest.mark.parametrize("target", ["help", "run", "test", "lint", "ui", "install", "clean"])
def test_make_tells_what_it_can_do(target):
    said = subprocess.run(["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^make {target} ", said, re.MULTILINE)
