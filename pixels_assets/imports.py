"""How modules are loaded: without what libraries load only because it is installed, and in processes that this one starts.

Must import only the standard library.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path


class Absent(MetaPathFinder):
    """Makes packages look absent while it is the first of `sys.meta_path`.

    Parameters
    ----------
    names : str
        Of packages. Those that are loaded already stay.
    """

    def __init__(self, *names: str) -> None:
        self._names = frozenset(names)

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Refuse these packages, and leave everything else to the finders behind this one."""
        if fullname in self._names:
            raise ModuleNotFoundError(fullname, name=fullname)


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Let packages look absent within the block; they may be imported after it."""
    finder = Absent(*names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def python_path() -> str:
    """Give the `PYTHONPATH` with which other processes find this package wherever they work."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
