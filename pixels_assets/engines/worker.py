"""The process that indexes shards for the local engine.

Holds the worker's side of the conversation. Must not decide anything about other workers, and must die with its parent.

The parent sends `Order` objects and receives `Segment` objects, then one `Answer` per order. A small shared block of memory says at any moment which
object is in hand, so that the parent knows it even when this process is killed in the middle of a codec.
"""

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from pixels_assets.engines.indexing import index_shard
from pixels_assets.engines.processes import RESTING, Monitor, State
from pixels_assets.engines.shards import Answer, Order, Segment
from pixels_assets.errors import PixelsError, place_of
from pixels_assets.intake.objects import Failure, row_id

logger = logging.getLogger(__name__)


_PR_SET_PDEATHSIG = 1
_YOUNG_OBJECTS = 10_000


class _Refused(Mapping[str, Failure]):
    """Looks addresses up by their row ids, which is all that the monitor has room for."""

    def __init__(self, by_row: dict[int, Failure]) -> None:
        self._by_row = by_row

    def __getitem__(self, path: str) -> Failure:
        return self._by_row[row_id(path)]

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return len(self._by_row)


class _Reporter:
    """Tells the parent what is in hand (shared memory, costs a microsecond) and what is finished (the connection)."""

    def __init__(self, connection: Connection, monitor: Monitor) -> None:
        self._connection, self._monitor = connection, monitor
        self._indexed = self._file = 0
        self.row = RESTING

    def opening(self, number: int) -> None:
        self._file = number

    def entering(self, path: str) -> None:
        self._say(row_id(path))

    def indexed(self) -> None:
        self._indexed += 1

    def resting(self) -> None:
        self._say(RESTING)

    def finished(self, segment: Segment) -> None:
        self._connection.send(segment)

    def _say(self, row: int) -> None:
        self.row = row
        self._monitor.write(State(self._indexed, time.monotonic_ns(), row, self._file))


def main(parent: int, connection_fd: int, monitor_fd: int) -> None:
    """Serve orders until the connection closes.

    Parameters
    ----------
    parent : int
        Process id of the process that this one was forked from (`pixels_assets.engines.template`).
    connection_fd, monitor_fd : int
        Inherited file descriptors: one end of a socket pair, and the file behind the shared block of memory.
    """
    _die_with(parent)
    # What is remembered of headers stays, and nearly all else goes without the collector: it would look at the former again and again.
    gc.set_threshold(_YOUNG_OBJECTS, 50, 1000)
    reporter = _Reporter(connection := Connection(connection_fd), Monitor(monitor_fd))
    limited = False
    while True:
        try:
            order: Order = connection.recv()
            if not limited:
                _log(order.spec.settings.log_level)
                _limit_memory(order.spec.settings.worker_bytes)
                limited = True
            connection.send(_carry_out(order, reporter))
        except (EOFError, ConnectionError):
            return  # the parent is gone or has no use for this process


def _carry_out(order: Order, reporter: _Reporter) -> Answer:
    refused = _Refused(order.refused) if order.refused else {}
    try:
        index_shard(order.shard, order.spec, reporter, refused=refused, files_done=order.files_done, after=order.after)
    except PixelsError as error:
        return Answer(error=error)
    except ConnectionError:
        raise
    except Exception as error:  # hostile input can raise anything in a library; the parent makes a row of it and logs the place
        return Answer(raised=place_of(error), row=reporter.row, out_of_memory=isinstance(error, MemoryError))
    finally:
        reporter.resting()
    return Answer()


def _log(level: str) -> None:
    """Write to standard error what our own modules have to say; libraries tell names and values of attributes when they are asked for details."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("pixels_assets").setLevel(level.upper())
    for library in ("pydicom", "PIL"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _limit_memory(limit: int) -> None:
    """Let allocations fail where they would take this process past `limit` bytes of resident memory.

    Elsewhere than on Linux the parent's watch has to do.
    """
    if sys.platform == "linux":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        data, resident = (int(status[name].split()[0]) * 1024 for name in ("VmData", "VmRSS"))
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = data + max(0, limit - resident)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
