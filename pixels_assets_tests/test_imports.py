"""Libraries that are kept from loading others, and can be used after that."""

import subprocess
import sys

import pytest

from pixels_assets.imports import without


def test_packages_look_absent_within_the_block_only(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    finders = list(sys.meta_path)
    with without("wave"), pytest.raises(ModuleNotFoundError):
        import wave
    assert sys.meta_path == finders
    import wave

    assert wave.Error


def test_commands_load_what_they_do_not_need_only_when_it_is_asked_for():
    code = """
import sys
from pixels_assets.cli import long_import
with long_import():
    import pixels_assets.runs
assert not {"pandas", "rich", "requests", "pygments"} & sys.modules.keys()
import requests
"""
    subprocess.run([sys.executable, "-c", code], check=True)
