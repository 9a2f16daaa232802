"""What the README and the other documents print is true: commands, Python and SQL run, links lead somewhere, tables are up to date."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import dagster as dg
import pytest
import yaml
from pydicom.data import get_testdata_file

from pixels_assets import Catalog
from pixels_assets.cli import main
from pixels_assets.definitions import build_definitions
from pixels_assets.intake.objects import Status

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = runpy.run_path(str(ROOT / "docs" / "generate.py"))


def blocks(language):
    """Fenced blocks of one language, in order, without the indentation of the list that they stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", README, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text) for _, text in found]


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]
PIXELS = [command for command in COMMANDS if command.startswith("pixels ")]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder as the README assumes it: some of pydicom's files in `images`, one twice, a text, and a lake of them."""
    folder = tmp_path_factory.mktemp("readme")
    images = folder / "images"
    images.mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "reportsi.dcm", "rtplan.dcm", "rtstruct.dcm", "zipMR.gz", "liver_1frame.dcm"):
        shutil.copy(str(get_testdata_file(name)), images)
    shutil.copy(images / "MR_small.dcm", images / "copy")
    (images / "text").write_bytes(b"hello")
    command = folder / "bin" / "pixels"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pixels_assets.cli "$@"\n')
    command.chmod(0o755)
    shutil.copy(ROOT / "dagster.yaml", folder)
    assert run(PIXELS[0], folder)
    return folder


def environment(folder):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIXELS_", "DAGSTER_"))}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return kept | {"DAGSTER_HOME": str(folder), "PATH": path, "PYTHONPATH": str(ROOT)}


def run(command, folder):
    ran = subprocess.run(["sh", "-c", command], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def run_here(command, folder, capsys):
    """The same in this process: that `pixels` starts as a program, the first command shows."""
    program, *arguments = shlex.split(command)
    assert program == "pixels"
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(kept := environment(folder)):
            patch.delenv(name)
        for name, value in kept.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        code = main(arguments)
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


def test_the_readme_prints_commands_python_sql_and_run_config():
    assert PIXELS[0] == "pixels ingest images"
    assert [command for command in COMMANDS if not command.startswith(("pixels ", "make "))] == []
    assert all(len(blocks(language)) >= 3 for language in ("python", "sql", "yaml"))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_commands_have_a_target(command):
    target = command.split()[1]
    ran = subprocess.run(["make", "-n", "-C", str(ROOT), target], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("command", PIXELS[1:])
def test_commands_run_as_printed(command, place, capsys):
    said = run_here(command, place, capsys)
    written = re.search(r" -o (\S+)$", command)
    assert (place / written[1]).stat().st_size if written else said


def test_python_blocks_run_as_printed(place):
    each = "import sys\nfor block in sys.argv[1:]:\n    exec(block, {'__name__': '__main__'})\n    print(end='\\0')"
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", each, *blocks("python")]
    ran = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *printed, rest = ran.stdout.split("\0")
    assert rest == ""
    assert len(printed) == len(blocks("python"))
    assert all(printed)


@pytest.mark.parametrize("statement", blocks("sql"))
def test_sql_runs_as_printed_and_finds_something(statement, place):
    assert Catalog(place / "var" / "lake").sql(statement).fetchall()


@pytest.mark.parametrize("block", blocks("yaml"))
def test_run_config_is_accepted_as_printed(block, tmp_path):
    definitions, config = build_definitions({"lake": tmp_path / "lake"}), yaml.safe_load(block)
    job = "discover" if "seal_batches" in config.get("ops", {}) else "ingest_batch"
    assert dg.validate_run_config(definitions.resolve_job_def(job), config)


def test_every_status_is_in_the_failure_policy():
    policy = README.partition("## Failure policy")[2].partition("\n## ")[0]
    assert not [status.value for status in Status if f"`{status.value}`" not in policy]


def test_the_settings_are_up_to_date():
    assert GENERATED["settings"]() in README, "run docs/generate.py"
    assert GENERATED["readme"](README) == README


def test_the_tables_are_up_to_date():
    assert (ROOT / "docs" / "tables.md").read_text(encoding="utf-8") == GENERATED["tables"](), "run docs/generate.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert not [target for target in targets if "://" not in target and not (document.parent / target).exists()]


def test_decisions_are_numbered_without_a_gap():
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert files
    for number, file in enumerate(files, start=1):
        assert file.name.startswith(f"{number:04d}-")
        assert file.read_text(encoding="utf-8").startswith(f"# {number}. ")
