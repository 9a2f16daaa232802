"""The `pixels` command. Thin: parses arguments, calls the layers below, prints. Imports them only when a command needs them."""

import argparse
import errno
import gc
import io
import logging
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pixels_assets import __version__
from pixels_assets.errors import PixelsError, UsageError
from pixels_assets.imports import without
from pixels_assets.settings import ENGINES, Settings, home

_INTERRUPTED = 130
_FORMATS = ("csv", "json", "parquet")
_SHORT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        0: done, bad files included. 1: the environment failed. 2: wrong arguments. 130: interrupted.
    """
    _open_standard_streams()
    try:
        with _terminating_in_order():
            code = _run(_options(arguments))
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        if arguments is None:  # the process ends with this; whoever asks again must not get a stack trace for it
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted; what was finished is kept, run the same command again to go on", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in _SHORT_OF:
            print(f"pixels: the system refused: {error.strerror}; raise its limits or end other programs, then run again", file=sys.stderr)
            return 1
        if error.errno != errno.ENOSPC or error.filename:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("pixels: there is no room for the output; make some, or send it somewhere else", file=sys.stderr)
        return 1
    except PixelsError as error:
        print(f"pixels: {error}", file=sys.stderr)
        return error.exit_code


def _open_standard_streams() -> None:
    """Give the null device to a process that was started with closed streams: files that it opens would take their places."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - for as long as the process lives


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    if more and options.command is not _bench:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    options.more = more
    return options


def _run(options: argparse.Namespace) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the terminal's encoding lacks is written out
        sys.stdout.reconfigure(errors="backslashreplace")
    settings = Settings.from_environment(
        lake=options.lake,
        workers=getattr(options, "workers", None),
        engine=getattr(options, "engine", None),
        spark_master=getattr(options, "master", None),
        spark_partitions=getattr(options, "partitions", None),
        extract_to=getattr(options, "extract_to", None),
        log_level="DEBUG" if options.verbose else None,
    )
    if settings.engine != "spark" and (getattr(options, "master", None) or getattr(options, "partitions", None)):
        msg = "--master and --partitions are for --engine spark"
        raise UsageError(msg)
    set_up_logging(settings)
    return int(options.command(options, settings))


def set_up_logging(settings: Settings) -> None:
    """Let this package speak from the level of the settings on, all others from warnings on."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("pixels_assets").setLevel(settings.log_level.upper())


@contextmanager
def long_import() -> Iterator[None]:
    """Import Dagster without the collector of cycles, which would look at half a million objects that stay again and again, then and later.

    And without what libraries load only because it is installed, a fifth of all: pandas (pyarrow), rich (structlog), requests (pydicom), pygments
    (mako). numpy's linear algebra, of which nothing here makes use, starts no threads, which would wait in a loop.
    """
    if "pixels_assets.runs" in sys.modules:
        yield
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import polars as pl  # noqa: F401 - asks whether there is pandas, and would not take no for an answer

    gc.disable()
    try:
        with without("pandas", "rich", "requests", "pygments"):
            yield
    finally:
        gc.enable()
    gc.freeze()


@contextmanager
def _terminating_in_order() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(UsageError.exit_code, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument("--lake", metavar="DIR", help="folder of the Delta tables (default: PIXELS_LAKE, else var/lake)")
    common.add_argument(
        "-v", "--verbose", action="store_true", help="tell what happens to each object, without patient data (PIXELS_LOG_LEVEL=DEBUG)"
    )
    parser = _Parser(prog="pixels", description="DICOM files to SQL-queryable metadata, thumbnails and an object catalog in Delta Lake.")
    parser.add_argument("--version", action="version", version=f"pixels_assets {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    ingest = commands.add_parser("ingest", parents=[common], help="bring in what is new, changed, moved or gone in folders")
    ingest.add_argument("sources", nargs="+", metavar="SRC", help="folder of files, in any state")
    _add_engine(ingest)
    ingest.add_argument("--mode", choices=["append", "overwrite"], default="append", help="only what changed, or everything again (default: append)")
    unzipped = home() / "var" / "unzipped"
    ingest.add_argument(
        "--extract-to", nargs="?", const=str(unzipped), metavar="DIR", help="extract archive members as well, to DIR (without DIR: var/unzipped)"
    )
    ingest.set_defaults(command=_ingest)

    status = commands.add_parser("status", parents=[common], help="counts by status, batches, quarantine, table versions")
    status.set_defaults(command=_status)

    diff = commands.add_parser("diff", parents=[common], help="the elements in which two objects differ, with their values")
    diff.add_argument("first", metavar="A", help="a file, an address such as archive.zip!/member, or a SOPInstanceUID")
    diff.add_argument("second", metavar="B", nargs="?", help="likewise (without it: all other versions of the SOPInstanceUID A)")
    diff.set_defaults(command=_diff)

    retry = commands.add_parser("retry", parents=[common], help="new attempt for objects in quarantine")
    retry.add_argument("--status", action="append", default=[], metavar="STATUS", help="only objects with this status; may be repeated")
    _add_engine(retry)
    retry.set_defaults(command=_retry)

    sql = commands.add_parser("sql", parents=[common], help="DuckDB over all tables, with helpers such as tag(meta, 'Modality')")
    sql.add_argument("statement", nargs="?", metavar="SQL", help='such as "select Modality, count(*) from object_catalog group by 1"; - is stdin')
    sql.add_argument("-f", "--file", type=Path, metavar="FILE", help="read the statement from a file")
    sql.add_argument("--format", choices=["table", *_FORMATS], help="default: by the name of the output file, else table")
    sql.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the result to a file")
    sql.add_argument("--attach", action="append", default=[], metavar="NAME=FILE", help="see a CSV, JSON or Parquet file as a table; may be repeated")
    sql.set_defaults(command=_sql)

    rebuild = commands.add_parser("rebuild", parents=[common], help="metadata and typed columns again, from the kept headers; sources may be gone")
    rebuild.add_argument("--batch", action="append", default=[], metavar="KEY", help="only this batch; may be repeated (default: all)")
    rebuild.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per core)")
    rebuild.set_defaults(command=_rebuild)

    bench = commands.add_parser("bench", add_help=False, help="the benchmarks, against peers; pixels bench --help")
    bench.set_defaults(command=_bench, lake=None, verbose=False)

    schema = commands.add_parser("schema", parents=[common], help="columns of a table as BigQuery shows them, nested")
    schema.add_argument("--table", default="headers", metavar="NAME", help="which table (default: headers)")
    schema.add_argument("--format", choices=["table", "json"], default="table", help="json is what BigQuery takes as a schema (default: table)")
    schema.set_defaults(command=_schema)

    tags = commands.add_parser("tags", parents=[common], help="every attribute that was seen, at every place: VR, objects, share, first batch")
    tags.add_argument("--format", choices=["table", *_FORMATS], default="table", help="default: table")
    tags.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the result to a file")
    tags.set_defaults(command=_tags)

    extract = commands.add_parser("extract", parents=[common], help="make the tables of extractors for what was ingested before")
    extract.add_argument("extractors", nargs="+", metavar="NAME", help="extractor, by name or as module:object; see docs/extractors.md")
    extract.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per core)")
    extract.set_defaults(command=_extract)

    serve = commands.add_parser("serve", parents=[common], help="DICOMweb and the viewer over the lake")
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at; others than this machine need a token")
    serve.add_argument("--port", type=int, default=8090, metavar="N", help="port to listen at (default: 8090)")
    serve.add_argument("--token", metavar="TOKEN", help="what clients have to present (default: PIXELS_TOKEN; better there than here)")
    serve.add_argument("--exports", metavar="DIR", help="folder for objects that clients store (default: PIXELS_EXPORTS, else var/exports)")
    serve.add_argument("--allow-delete", action="store_true", help="let clients remove what clients stored")
    serve.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="origin whose pages may use the server; may be repeated")
    serve.add_argument("--public-url", metavar="URL", help="how clients see the server, where a proxy stands before it")
    serve.set_defaults(command=_serve)

    maintain = commands.add_parser("maintain", parents=[common], help="compact small files, write checkpoints, remove what no reader needs any more")
    maintain.add_argument("--dry-run", action="store_true", help="change nothing, only tell what would be done")
    maintain.set_defaults(command=_maintain)
    return parser


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", choices=ENGINES, help="what runs the work: processes here, or Spark (default: PIXELS_ENGINE, else local)")
    command.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per core)")
    command.add_argument("--master", metavar="URL", help="Spark's master, as spark://host:7077 (default: PIXELS_SPARK_MASTER, else this machine)")
    command.add_argument("--partitions", type=int, metavar="N", help="Spark's tasks for a batch (default: PIXELS_SPARK_PARTITIONS, else by size)")


def _ingest(options: argparse.Namespace, settings: Settings) -> int:
    from pixels_assets.intake.listing import Listing

    for source in options.sources:
        Listing(source)
    with long_import():
        from pixels_assets.runs import ingest

    _be_heard(settings)
    ran = ingest(settings, options.sources, mode=options.mode, say=_say)
    _print_status(settings)
    rate = f": {ran.files / ran.seconds:.0f} files/s, {ran.objects / ran.seconds:.0f} objects/s" if ran.files else ""
    print(f"\n{ran.files} files, {ran.objects} objects in {ran.seconds:.1f} s{rate}; the lake is in {settings.lake}")
    if ran.discovery.waiting:
        print(f"{ran.discovery.waiting} files wait: they were just written, or are named *.part or *.tmp; run again to take them")
    _print_next(settings)
    return _ended(ran.failed)


def _retry(options: argparse.Namespace, settings: Settings) -> int:
    from pixels_assets.lake.query import quarantined_batches

    before = sum(quarantined_batches(settings.lake, options.status).values())
    if not before:
        print("nothing in quarantine to try again")
        return 0
    with long_import():
        from pixels_assets.runs import retry

    _be_heard(settings)
    ran = retry(settings, options.status, say=_say)
    after = sum(quarantined_batches(settings.lake, options.status).values())
    print(f"{before} objects tried again, {max(0, before - after)} left quarantine, {after} are still in it")
    return _ended(ran.failed)


def _maintain(options: argparse.Namespace, settings: Settings) -> int:
    from pixels_assets.lake.maintenance import maintain

    _be_heard(settings)
    for done in maintain(settings.lake, dry_run=options.dry_run):
        steps = [
            f"{done.compacted} of {done.files} files become {done.into}" if done.compacted else "",
            "checkpoint" if done.checkpoint else "",
            f"{done.vacuumed} old files removed" if done.vacuumed else "",
            f"{done.log_files} files of the log removed" if done.log_files else "",
        ]
        print(f"{done.table:<20}{', '.join(filter(None, steps)) or 'in order'} ({done.seconds:.1f} s)")
    if options.dry_run:
        print("nothing was changed: this is what `pixels maintain` would do")
    return 0


def _bench(options: argparse.Namespace, settings: Settings) -> int:
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "benchmarks" / "bench.py").exists():
        msg = "the benchmarks are in the source checkout, not in the installed package; run this command there"
        raise UsageError(msg)
    sys.path.insert(0, str(checkout))
    from importlib import import_module

    return int(import_module("benchmarks.bench").main(options.more))


def _extract(options: argparse.Namespace, settings: Settings) -> int:
    with long_import():
        from pixels_assets.runs import extract

    _be_heard(settings)
    ran = extract(settings, options.extractors, say=_say)
    print(f"{len(ran.batches)} batches, {ran.files} files in {ran.seconds:.1f} s")
    return _ended(ran.failed)


def _status(options: argparse.Namespace, settings: Settings) -> int:  # one signature for all commands
    _print_status(settings)
    return 0


def _sql(options: argparse.Namespace, settings: Settings) -> int:
    from pixels_assets.lake import sql

    statement = _statement(options)
    attached = dict(map(_attachment, options.attach))
    kind = options.format or (_format_of(options.output) if options.output else "table")
    if kind == "table":
        text = sql.as_text(settings.lake, statement, attached, width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
        if options.output:
            with sql.unfinished(settings.lake, options.output) as file:
                file.write_text(f"{text}\n", encoding="utf-8")
        else:
            print(text)
    elif options.output:
        sql.write_file(settings.lake, statement, options.output, kind, attached)
    else:
        _stream(settings.lake, statement, kind, attached)
    return 0


def _stream(lake: Path, statement: str, kind: str, attached: Mapping[str, object]) -> None:
    from pixels_assets.lake import sql

    if kind == "parquet" and sys.stdout.isatty():
        msg = "a terminal does not show Parquet; write it to a file with -o FILE"
        raise UsageError(msg)
    sys.stdout.flush()
    sql.write_stream(lake, statement, sys.stdout.buffer, kind, attached)
    sys.stdout.flush()


def _rebuild(options: argparse.Namespace, settings: Settings) -> int:
    with long_import():
        from pixels_assets.runs import rebuild

    _be_heard(settings)
    done = rebuild(settings, options.batch, say=_say)
    print(
        f"{done['rebuilt']} objects rebuilt; as they were: {done['without_header']} whose header is over 16 MiB, "
        f"{done['unreadable_header']} whose header cannot be read, {done['not_indexed']} that are not indexed"
    )
    return 0


def _schema(options: argparse.Namespace, settings: Settings) -> int:
    import json

    from pixels_assets.lake.describe import bigquery_schema, schema_lines

    fields = bigquery_schema(settings.lake, options.table)
    print(json.dumps(fields, indent=2) if options.format == "json" else "\n".join(schema_lines(fields)))
    return 0


def _tags(options: argparse.Namespace, settings: Settings) -> int:
    from pixels_assets.lake import sql
    from pixels_assets.lake.describe import seen_tags

    statement, seen = "select * from seen_tags", {"seen_tags": seen_tags(settings.lake)}
    kind = _format_of(options.output) if options.output and options.format == "table" else options.format
    if options.output:
        sql.write_file(settings.lake, statement, options.output, kind, seen)
    elif kind == "table":
        for row in [("VR", "objects", "share", "first batch", "attribute"), *_tag_lines(seen["seen_tags"].iter_rows())]:
            print("{:<3}{:>10}{:>8}  {:<22}  {}".format(*row))
    else:
        _stream(settings.lake, statement, kind, seen)
    return 0


def _tag_lines(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[str, ...]]:
    for path, _, creator, vr, objects, share, batch in rows:
        yield vr, f"{objects}", f"{share:.1%}", batch, path + (f" ({creator})" if creator else "")


def _statement(options: argparse.Namespace) -> str:
    """Read the statement from where it is."""
    if options.file and options.statement:
        msg = "give a statement or a file with one, not both"
        raise UsageError(msg)
    if options.file and str(options.file) != "-":
        try:
            return str(options.file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            msg = f"the statement cannot be read from {options.file}: {getattr(error, 'strerror', 'it is not UTF-8')}"
            raise UsageError(msg) from None
    if options.statement and options.statement != "-":
        return _decoded(options.statement)
    if not options.statement and not options.file and sys.stdin.isatty():
        msg = "give a statement, -f FILE, or a statement on stdin"
        raise UsageError(msg)
    return _decoded(sys.stdin.read())


def _decoded(statement: str) -> str:
    """Undo what a locale without UTF-8 makes of a statement."""
    try:
        statement.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(statement).decode()
        except UnicodeError:
            msg = "the statement is not UTF-8"
            raise UsageError(msg) from None
    return statement


def _attachment(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        msg = f"--attach {text!r} is not NAME=FILE, such as ehr=patients.parquet"
        raise UsageError(msg)
    return name.strip(), path


def _format_of(path: Path) -> str:
    kinds = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".txt": "table"}
    if path.suffix.lower() not in kinds:
        msg = f"the name {path.name} does not tell the format of the output; add --format {', '.join(_FORMATS)} or table"
        raise UsageError(msg)
    return kinds[path.suffix.lower()]


def _serve(options: argparse.Namespace, settings: Settings) -> int:
    from pixels_assets.dicomweb.app import serve
    from pixels_assets.dicomweb.service import WebSettings
    from pixels_assets.engines.processes import keep_workers

    if not 0 < options.port < 65536:
        msg = f"there is no port {options.port}; ports are 1 to 65535"
        raise UsageError(msg)

    def bring_in(folder: Path) -> None:
        from pixels_assets.runs import ingest

        ran = ingest(storing, [folder])
        if ran.failed:
            raise PixelsError(next(iter(ran.failed.values())))

    def prepare() -> None:
        from pixels_assets.runs import prepare

        prepare(storing)

    # What was stored is complete, and what was removed was removed on purpose.
    storing = replace(settings, quiet_seconds=0.0, accept_empty=True)
    _be_heard(settings)
    web = WebSettings(
        host=options.host,
        port=options.port,
        token=options.token or os.environ.get("PIXELS_TOKEN") or None,
        exports=Path(options.exports or os.environ.get("PIXELS_EXPORTS") or home() / "var" / "exports").expanduser().absolute(),
        allow_delete=options.allow_delete,
        origins=tuple(options.allow_origin),
        public_url=options.public_url,
    )
    with keep_workers():
        serve(settings, web, bring_in, prepare, say=_say)
    return 0


def _diff(options: argparse.Namespace, settings: Settings) -> int:
    """Return 0 when the objects are the same, 1 when they differ."""
    from pixels_assets.lake.versions import compare

    found = compare(settings.lake, options.first, options.second, settings.limits)
    for comparison in found:
        print(f"--- {comparison.left}\n+++ {comparison.right}")
        for item in comparison.differences:
            print(f"{item.tag} {item.keyword}")
            for sign, value in (("-", item.left), ("+", item.right)):
                if value is not None:
                    print(f"  {sign} {_printable(value)}")
        print(f"{len(comparison.differences)} elements differ" if comparison.differences else "no element differs")
    return int(any(comparison.differences for comparison in found))


def _printable(text: str) -> str:
    """Write control characters out, which could lead a terminal astray, and what cannot be encoded."""
    shown = "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _be_heard(settings: Settings) -> None:
    """Show the package's progress even when other loggers are quiet."""
    logger = logging.getLogger("pixels_assets")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    os.environ["PIXELS_LOG_LEVEL"] = settings.log_level


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_status(settings: Settings) -> None:
    from pixels_assets.lake.query import status

    found = status(settings.lake)
    objects = sum(found.statuses.values())
    known = f"{found.patients} patients, {found.studies} studies, {found.series} series, {found.instances} instances"
    print(f"{objects} objects, {found.bytes:,} bytes: {known}")
    for name, count in sorted(found.statuses.items(), key=lambda item: -item[1]):
        print(f"  {name:<16}{count:>10}")
    if found.quarantine:
        print("in quarantine")
        for name, code, count, due in found.quarantine:
            print(f"  {name:<16}{count:>10}  {code}" + (f", {due} due for another attempt" if due else ""))
    print(f"batches: {len(found.batches)} sealed, {len(found.pending)} not finished")
    versions = {name: f" v{version}" for name, version in found.versions.items()}
    print("tables: " + ", ".join(f"{name}{versions.get(name, '')} ({rows} rows)" for name, rows in found.rows.items()))


def _print_next(settings: Settings) -> None:
    lake = "" if settings.lake == home() / "var" / "lake" else f" --lake {settings.lake}"
    tried = Path(sys.argv[0])
    pixels = str(tried) if tried.name == "pixels" and not shutil.which("pixels") else "pixels"
    print(f"next: {pixels} status{lake}; make ui; SQL in the README")


def _ended(failed: dict[str, str]) -> int:
    for reason, count in Counter(failed.values()).items():
        first = next(batch for batch, why in failed.items() if why == reason)
        others = f" and {count - 1} others" if count > 1 else ""
        print(f"pixels: batch {first}{others} did not finish: {reason}", file=sys.stderr)
    return PixelsError.exit_code if failed else 0


if __name__ == "__main__":
    sys.exit(main())
