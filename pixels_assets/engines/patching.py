"""The patcher: corrected copies of objects, written by rules to a target folder in the pass that reads them. Sources are never touched.

Holds the rules, their file format, and the extractor `patches` that applies them. Must not decide which objects are read.

A rule file is YAML::

    - name: station of the new scanner
      where: {Modality: CT, ManufacturerModelName: "Discovery*", StationName: null}
      set: {StationName: CT01}
      replace: {PatientID: {pattern: "^0+", with: ""}}
      remove: [PatientComments, "(0009,0010)"]

All of `where` must hold: text with ``*`` and ``?`` as wildcards, or null for what is absent or empty. Attributes are keywords or tags, of the top
level.
"""

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from pixels_assets.engines.extractors import Extractor, Seen
from pixels_assets.errors import LakeError, UsageError
from pixels_assets.lake.schema import Column
from pixels_assets.settings import Settings

_TAG = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?")
_FILE_META = {0x00080016: 0x00020002, 0x00080018: 0x00020003}
_PARTS = {"name", "where", "set", "replace", "remove"}
_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class Rule:
    """What to change in which objects; tags are those of the top level.

    Parameters
    ----------
    name : str
    where : tuple of (tag, pattern or None)
    assign : tuple of (tag, value)
        Text, a number, or a list of these.
    replace : tuple of (tag, pattern, replacement)
        For each value that is text.
    remove : tuple of tag
    """

    name: str
    where: tuple[tuple[int, str | None], ...]
    assign: tuple[tuple[int, Any], ...]
    replace: tuple[tuple[int, re.Pattern[str], str], ...]
    remove: tuple[int, ...]

    def applies(self, dataset: Dataset) -> bool:
        """Whether an object is one that the rule is about."""
        return all(_matches(dataset, tag, pattern) for tag, pattern in self.where)

    def apply(self, dataset: Dataset) -> set[int]:
        """Change an object in memory; returns the tags of what really changed."""
        changed: set[int] = set()
        for tag in self.remove:
            if tag in dataset:
                del dataset[tag]
                changed.add(tag)
        for tag, value in self.assign:
            if tag not in dataset or dataset[tag].value != value:
                dataset.add_new(tag, dataset[tag].VR if tag in dataset else dictionary_VR(tag), value)
                changed.add(tag)
        for tag, pattern, replacement in self.replace:
            before = dataset[tag].value if tag in dataset else None
            after = _replaced(before, pattern, replacement)
            if before is not None and after != before:
                dataset[tag].value = after
                changed.add(tag)
        return changed


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Read a file of rules.

    Raises
    ------
    UsageError
        The file is missing, no YAML, or a rule says something unknown; the message names the rule and the word.
    """
    return _read_rules(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=4)
def _read_rules(path: Path, mtime_ns: int) -> tuple[Rule, ...]:
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"the rules of the patcher cannot be read from {path}: {error.strerror}"
        raise UsageError(msg) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{path} is no YAML: {str(error).splitlines()[0]}"
        raise UsageError(msg) from error
    if not isinstance(given, list) or not given:
        msg = f"{path} holds no list of rules"
        raise UsageError(msg)
    return tuple(_rule(rule, number, path) for number, rule in enumerate(given, start=1))


def _rule(given: object, number: int, path: Path) -> Rule:
    where = f"{path}, rule {number}"
    if not isinstance(given, Mapping) or given.keys() - _PARTS or not given.keys() & {"set", "replace", "remove"}:
        msg = f"{where}: a rule has `set`, `replace` or `remove`, and may have `name` and `where`; nothing else"
        raise UsageError(msg)
    try:
        return Rule(
            name=str(given.get("name", f"rule {number}")),
            where=tuple((_tag(key), None if value is None else str(value)) for key, value in dict(given.get("where") or {}).items()),
            assign=tuple((_tag(key, new=True), value) for key, value in dict(given.get("set") or {}).items()),
            replace=tuple(
                (_tag(key), re.compile(str(value["pattern"])), str(value["with"])) for key, value in dict(given.get("replace") or {}).items()
            ),
            remove=tuple(_tag(key) for key in given.get("remove") or ()),
        )
    except (KeyError, TypeError, ValueError, re.error) as error:
        msg = f"{where}: {error}"
        raise UsageError(msg) from error


def _tag(key: object, *, new: bool = False) -> int:
    found = _TAG.fullmatch(str(key))
    tag = int(found.group(1) + found.group(2), 16) if found else tag_for_keyword(str(key))
    if tag is None:
        msg = f"there is no attribute {key!r}"
        raise ValueError(msg)
    if tag >> 16 in {0x0002, 0x7FE0}:
        msg = f"{key!r} belongs to the encoding of the file, which is not patched"
        raise ValueError(msg)
    if new and not BaseTag(tag).is_private:
        dictionary_VR(tag)
    return tag


def _matches(dataset: Dataset, tag: int, pattern: str | None) -> bool:
    value = dataset[tag].value if tag in dataset else None
    if pattern is None:
        return value is None or str(value) == ""
    values = value if isinstance(value, MultiValue | list) else [value]
    return value is not None and any(fnmatchcase(str(part), pattern) for part in values)


def _replaced(value: Any, pattern: re.Pattern[str], replacement: str) -> Any:
    if isinstance(value, MultiValue | list):
        return [_replaced(part, pattern, replacement) for part in value]
    return value if value is None or isinstance(value, bytes) else pattern.sub(replacement, str(value))


def rules_and_folder(settings: Settings) -> tuple[tuple[Rule, ...], Path]:
    """Read the rules that the settings name; tell where the copies go.

    Raises
    ------
    UsageError
        They name no file, or no folder for the copies; or see `read_rules`.
    """
    if settings.patch_rules is None or settings.patch_to is None:
        msg = "the extractor `patches` needs PIXELS_PATCH_RULES, a file, and PIXELS_PATCH_TO, a folder"
        raise UsageError(msg)
    return read_rules(settings.patch_rules), settings.patch_to


def _patch(seen: Seen) -> Mapping[str, object] | None:
    settings, header = seen.settings, seen.header
    rules, folder = rules_and_folder(settings)
    stream = seen.found.stream
    if header is None or stream is None:
        return None
    stream.seek(0)
    # Pixel data are copied as they are; a deflated object has no offset of them in its file.
    in_place = header.pixel_offset is not None and header.stream is stream
    dataset = dcmread(stream, force=True, stop_before_pixels=in_place)
    applied: list[str] = []
    changed: set[int] = set()
    for rule in rules:
        if rule.applies(dataset):
            done = rule.apply(dataset)
            applied += [rule.name] if done else []
            changed |= done
    if not changed:
        return None
    for tag, meta in _FILE_META.items():
        if tag in changed and tag in dataset and meta in dataset.file_meta:
            dataset.file_meta[meta].value = dataset[tag].value
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=False)
    path = _target(folder, seen.found.path)
    _write(path, folder, buffer, seen, header.pixel_offset if in_place else None)
    names = [keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in sorted(changed)]
    return {"patched_path": str(path), "rules": applied, "elements": names}


def _target(folder: Path, address: str) -> Path:
    """Path of a copy: the object's whole address below the folder, so that no two objects share one."""
    parts = []
    for part in address.split("/"):
        if part and (part in {".", ".."} or len(part.encode()) > _NAME_BYTES):
            parts.append(part.replace("..", "_")[:40] + "~" + blake2b(part.encode(), digest_size=8).hexdigest())
        elif part:
            parts.append(part)
    return folder.joinpath(*parts)


def _write(path: Path, folder: Path, head: BytesIO, seen: Seen, pixel_offset: int | None) -> None:
    unfinished = path.with_name(f".{path.name[:_NAME_BYTES]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(folder.resolve()):
            msg = f"a link below {folder} leads out of it; choose an empty folder for patched copies"
            raise UsageError(msg)
        with unfinished.open("wb") as file:
            file.write(head.getbuffer())
            if pixel_offset is not None and seen.found.stream is not None:
                seen.found.stream.seek(pixel_offset)
                shutil.copyfileobj(seen.found.stream, file, 1 << 20)
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        msg = f"patched copies cannot be written to {folder} ({error.strerror}); free space there, permit writing or choose another"
        raise LakeError(msg) from error


_TEXTS = pa.list_(pa.string())

PATCHES = Extractor(
    "patches",
    "1",
    "One row per object of which rules made a corrected copy.",
    (
        Column("patched_path", pa.string(), "The copy."),
        Column("rules", _TEXTS, "Names of the rules that changed something."),
        Column("elements", _TEXTS, "Attributes that were changed, by keyword or tag."),
    ),
    _patch,
)
