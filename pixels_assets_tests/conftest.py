"""What holds for all tests: in which order the files run, which wait for PIXELS_LONG, and that none leaves anything to those after it."""

import gc
import logging
import os
from collections import Counter
from collections.abc import Iterator

import pytest

from pixels_assets.engines.processes import keep_workers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first: processes that share the files then end at about the same time."""
    slow = Counter(item.path for item in items if any(map(item.get_closest_marker, ("slow", "spark", "ui"))))
    items.sort(key=lambda item: -slow[item.path])
    if not os.environ.get("PIXELS_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="PIXELS_LONG is not set"))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the garbage collector, else a tenth of the time, need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def as_it_was() -> Iterator[None]:
    """Commands that run in this process set variables and how loggers are heard: each file finds both as if it ran alone."""
    variables, logger = dict(os.environ), logging.getLogger("pixels_assets")
    state = {name: getattr(logger, name) for name in ("level", "propagate", "disabled")} | {"handlers": list(logger.handlers)}
    yield
    os.environ.clear()
    os.environ.update(variables)
    for name, value in state.items():
        setattr(logger, name, value)


@pytest.fixture(scope="module")
def kept_workers() -> Iterator[None]:
    """Worker processes of runs in this process live on from one test of a file to the next, as they do in `pixels serve`."""
    with keep_workers():
        yield
