"""Every setting, with its default, read from the environment or given as arguments.

Knows no Dagster and opens nothing. One frozen object goes through all layers, to worker processes too.
"""

import os
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, Self

from pixels_assets.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
ENGINES = ("local", "spark")
_TOO_LARGE = 2**62
_KINDS: dict[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a text"),
}


def _setting(default: Any, meaning: str, *, at_least: float | None = None) -> Any:
    return field(default=default, metadata={"meaning": meaning, "at_least": at_least})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Guards against hostile input; what crosses one becomes a row with status `limit_exceeded`.

    Each has an environment variable: ``PIXELS_LIMIT_`` and the name in capitals. Sizes are bytes.
    """

    max_members: int = _setting(2_000_000, "Members of one outermost archive, nested ones included.", at_least=1)
    max_total_bytes: int = _setting(4 * TIB, "Expanded bytes of one outermost archive, nested ones included.", at_least=1)
    max_member_bytes: int = _setting(64 * GIB, "Expanded bytes of one member or one compressed file.", at_least=1)
    max_ratio: float = _setting(200.0, "Expanded bytes per compressed byte, once more than `ratio_floor_bytes` were expanded.", at_least=1)
    ratio_floor_bytes: int = _setting(64 * MIB, "Up to this many expanded bytes no ratio is held against a member or an archive.", at_least=0)
    max_depth: int = _setting(8, "Archives within archives; the outermost is depth 1.", at_least=1)
    max_deflated_bytes: int = _setting(64 * MIB, "Inflated bytes of a DICOM data set in a deflated transfer syntax.", at_least=1)
    max_memory_bytes: int = _setting(
        64 * MIB, "Expanded members up to this size stay in memory; larger ones go to an unnamed temporary file.", at_least=1
    )
    max_frame_bytes: int = _setting(192 * MIB, "Decoded bytes of the one frame that becomes a thumbnail.", at_least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run needs to know.

    Each has an environment variable: ``PIXELS_`` and the name in capitals. Sizes are bytes, times are seconds.

    Raises
    ------
    UsageError
        A value is of the wrong type or out of range.
    """

    lake: Path = _setting(Path("var/lake"), "Folder of the Delta tables.")  # noqa: RUF009 - a field, not a shared value
    sources: tuple[str, ...] = _setting((), "Folders that the sensor watches and that `discover` lists by default, joined by the path separator.")
    engine: str = _setting("local", "What indexes objects. `local`: processes on this machine. `spark`: a Spark cluster.")
    workers: int = _setting(0, "Worker processes; 0 means one per core.", at_least=0)
    spark_master: str = _setting("", "Spark's master, such as `spark://host:7077`; none: Spark on this machine, with as many cores as workers.")
    spark_partitions: int = _setting(0, "Tasks that Spark cuts a batch into; 0 means one for each shard of 64 files or 32 MiB.", at_least=0)
    batch_files: int = _setting(5_000, "A batch is sealed at this many files.", at_least=1)
    batch_bytes: int = _setting(2_000_000_000, "A batch is sealed at this many bytes of files.", at_least=1)
    quiet_seconds: float = _setting(2.0, "Files modified less than this long ago wait for the next pass.", at_least=0)
    accept_empty: bool = _setting(False, "A source that held files and is empty now was emptied on purpose; otherwise it is taken for not mounted.")
    watch_seconds: int = _setting(30, "Time between two looks of the sensor at its sources; the daemon takes no less than about 5.", at_least=1)
    extract_to: Path | None = _setting(None, "Folder to extract archive members to; none: they are only read in place.")  # noqa: RUF009 - a field
    thumbnail_size: int = _setting(256, "Longest side of a thumbnail, pixels.", at_least=8)
    preview: bool = _setting(True, "Attach a contact sheet to materializations. It shows patients' images: false switches it off.")
    object_seconds: float = _setting(60.0, "Time that one object may take before its worker is stopped.", at_least=0.1)
    worker_bytes: int = _setting(1024 * MIB, "Memory that one worker process may hold; about 60 MiB of it are the program.", at_least=128 * MIB)
    failure_share: float = _setting(0.1, "A batch in which more than this share of objects ends in one failing status gets a warning.", at_least=0)
    extractors: str = _setting("", "Extractors to run in the same pass, by name or as module:object, joined by commas; see docs/extractors.md.")
    patch_rules: Path | None = _setting(None, "File of rules for the extractor `patches`.")  # noqa: RUF009 - a field
    patch_to: Path | None = _setting(None, "Folder for the corrected copies that the extractor `patches` writes.")  # noqa: RUF009 - a field
    headers: bool = _setting(True, "Keep the nested data set `headers` up to date.")
    headers_partition: str = _setting("batch", "How its files are partitioned: batch, or study_date for a folder per day as well.")
    headers_missing_date: str = _setting("", "Day that stands for none in its folders, such as 1900-01-01; empty: the partition of NULL.")
    log_level: str = _setting("INFO", "Level of the package's loggers: DEBUG, INFO, WARNING or ERROR.")
    limits: Limits = field(default_factory=Limits, metadata={"meaning": "Guards against hostile input.", "at_least": None})

    def __post_init__(self) -> None:
        limits: object = self.limits
        if not isinstance(limits, Limits):
            msg = f"limits is {limits!r}; it must be a Limits, such as Limits(max_depth=3)"
            raise UsageError(msg)
        _check(self)
        _check(self.limits)

    @property
    def worker_count(self) -> int:
        """Worker processes to start: the setting, or the cores this process may use."""
        if self.workers:
            return self.workers
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return usable or 1

    @classmethod
    def from_environment(cls, **overrides: Any) -> Self:
        """Read ``PIXELS_*`` variables, then let arguments that are not None win.

        Raises
        ------
        UsageError
            A variable does not parse or is out of range, or there is no such setting; the message names it.
        """
        values: dict[str, Any] = {"lake": home() / "var" / "lake", "limits": Limits(**_from_environment(Limits, "PIXELS_LIMIT_"))}
        values |= _from_environment(cls, "PIXELS_")
        values |= {name: value for name, value in overrides.items() if value is not None}
        for name in ("extract_to", "patch_rules", "patch_to"):
            values[name] = folder_path(name, values[name]) if values.get(name) else None
        values["lake"] = folder_path("lake", values["lake"])
        values["sources"] = tuple(str(_absolute("sources", source)) for source in values.get("sources", ()))
        unknown = values.keys() - {item.name for item in fields(cls)}
        if unknown:
            msg = f"there are no settings {sorted(unknown)}; the settings are {', '.join(item.name for item in fields(cls))}"
            raise UsageError(msg)
        return cls(**values)


def home() -> Path:
    """Folder of `dagster.yaml`, below which `var/` lies: DAGSTER_HOME, else the checkout that this package is in, else the working folder."""
    configured = os.environ.get("DAGSTER_HOME")
    if configured:
        return Path(configured).absolute()
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "dagster.yaml").exists() else Path.cwd()


def _absolute(name: str, path: Any) -> Path:
    """Make a path of what was given for a setting, ``~`` resolved."""
    try:
        if path:
            return Path(path).expanduser().absolute()
    except (TypeError, RuntimeError):  # no path at all, or somebody's home who is nobody
        pass
    msg = f"{name} is {path!r}; it must be a path"
    raise UsageError(msg)


def folder_path(name: str, path: Any) -> Path:
    """Make an absolute path of what was given for the lake or another folder that is written to; it also stands in tables and in Dagster's storage.

    Raises
    ------
    UsageError
        It is empty, no path, or no UTF-8.
    """
    found = _absolute(name, path)
    try:
        str(found).encode()
    except UnicodeEncodeError:
        msg = f"{name} is {str(found)!r}, which is no UTF-8 here; use another name, or set PYTHONUTF8=1 where the locale is the reason"
        raise UsageError(msg) from None
    return found


def _from_environment(cls: type[Any], prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in fields(cls):
        text = os.environ.get(prefix + item.name.upper())
        if text and item.name != "limits":
            values[item.name] = _parse(prefix + item.name.upper(), text, item.default)
    return values


def _parse(variable: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() in {"1", "true", "yes", "on"}:
            return True
        if text.lower() in {"0", "false", "no", "off"}:
            return False
        msg = f"{variable}={text!r} is not a yes or no; use true or false"
        raise UsageError(msg)
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            msg = f"{variable}={text!r} is not a number; the default is {default}"
            raise UsageError(msg) from None
    if isinstance(default, tuple):
        return tuple(part for part in text.split(os.pathsep) if part)
    if default is None or isinstance(default, Path):
        return Path(text)
    return text


def _check(values: Settings | Limits) -> None:
    for item in fields(values):
        least, value = item.metadata["at_least"], getattr(values, item.name)
        wanted, meant = _KINDS.get(type(item.default), (object, ""))
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            msg = f"{item.name} is {value!r}; it must be {meant}"
            raise UsageError(msg)
        if least is not None and not least <= value < _TOO_LARGE:  # which not a number and infinity are not either
            msg = f"{item.name} is {value}; it must be at least {least}" + ("" if value < least else f" and less than {_TOO_LARGE}")
            raise UsageError(msg)
    if isinstance(values, Settings) and values.engine not in ENGINES:
        msg = f"engine is {values.engine!r}; use {' or '.join(ENGINES)}"
        raise UsageError(msg)
    if isinstance(values, Settings) and values.headers_partition not in {"batch", "study_date"}:
        msg = f"headers_partition is {values.headers_partition!r}; use batch or study_date"
        raise UsageError(msg)
    if isinstance(values, Settings) and not _is_day(values.headers_missing_date):
        msg = f"headers_missing_date is {values.headers_missing_date!r}; use a day such as 1900-01-01, or nothing"
        raise UsageError(msg)
    if isinstance(values, Settings) and values.log_level.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        msg = f"log_level is {values.log_level!r}; use DEBUG, INFO, WARNING or ERROR"
        raise UsageError(msg)


def _is_day(text: str) -> bool:
    try:
        return not text or date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
