"""Writes what the documentation takes from the code: `docs/tables.md`, and the table of settings in the README.

Run it after a change of `lake/schema.py` or `settings.py`: ``.venv/bin/python docs/generate.py``. A test compares. Holds no facts of its own.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from pixels_assets.lake.schema import TABLES
from pixels_assets.settings import GIB, MIB, TIB, Limits, Settings

ROOT = Path(__file__).resolve().parents[1]
TABLES_FILE = ROOT / "docs" / "tables.md"
README = ROOT / "README.md"
_MARKED = re.compile(r"(<!-- settings: made by docs/generate.py -->\n).*?(<!-- end of settings -->)", re.DOTALL)


def tables() -> str:
    """Describe every table and column, in Markdown."""
    return "\n".join(_tables()) + "\n"


def settings() -> str:
    """Describe every setting with its variable, default and meaning, as a Markdown table."""
    rows = [("PIXELS_" + item.name.upper(), _text(item.default), item.metadata["meaning"]) for item in fields(Settings) if item.name != "limits"]
    rows += [("PIXELS_LIMIT_" + item.name.upper(), _text(item.default), item.metadata["meaning"]) for item in fields(Limits)]
    lines = ["| Variable | Default | Meaning |", "| --- | --- | --- |"]
    lines += [f"| `{variable}` | {default} | {meaning} |" for variable, default, meaning in rows]
    return "\n".join(lines) + "\n"


def readme(text: str) -> str:
    """Put the table of settings where the README marks its place."""
    return _MARKED.sub(lambda found: found[1] + settings() + found[2], text)


def _tables() -> Iterator[str]:
    yield "# The tables"
    yield ""
    yield "Made from `pixels_assets/lake/schema.py` by `docs/generate.py`. Each is a Delta table below the lake's root."
    for table in TABLES.values():
        yield ""
        yield f"## {table.name}"
        yield ""
        yield f"{table.meaning} Partitioned by `batch`." if table.partitioned else table.meaning
        yield ""
        yield "| Column | Type | Meaning |"
        yield "| --- | --- | --- |"
        for column in table.columns:
            kind = re.sub(r"<(?:item|element): (\w+)>", r" of \1", str(column.type)) + ("" if column.nullable else ", required")
            yield f"| `{column.name}` | {kind} | {_cell(column.comment)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _text(default: object) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        for size, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB")):
            if default >= size and default % size == 0:
                return f"{default} ({default // size:.0f} {unit})"
        return f"{default:g}" if isinstance(default, float) else str(default)
    return f"`{os.fspath(default) if isinstance(default, Path) else default}`"


if __name__ == "__main__":
    TABLES_FILE.write_text(tables(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
