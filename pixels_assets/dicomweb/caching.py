"""A cache that is bounded by weight, for bytes and small objects that are expensive to make. Must not know what they are."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Keep what was used last, up to a total weight. For any number of threads.

    Parameters
    ----------
    most : int
        Total weight, in the unit of `weigh`.
    weigh : callable
        Weight of a value; 1 by default. What is heavier than half of `most` is handed through and not kept.
    drop : callable, optional
        Told of each value that leaves.
    """

    def __init__(self, most: int, weigh: Callable[[Value], int] = lambda value: 1, drop: Callable[[Value], None] = lambda value: None) -> None:
        self._most = most
        self._weigh = weigh
        self._drop = drop
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self.weight = 0
        self.hits = 0
        self.misses = 0

    @property
    def figures(self) -> tuple[int, int, int]:
        """Weight, hits and misses."""
        return self.weight, self.hits, self.misses

    def peek(self, key: Hashable) -> Value | None:
        """Give what is kept under a key, None when nothing is."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._kept.move_to_end(key)
            return found[0]

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Give what is kept under a key, or make it; of several threads that ask for one key at once only one makes it."""
        value = self.peek(key)
        if value is not None:
            return value
        with self._lock:
            turn = self._making.setdefault(key, threading.Lock())
        with turn:
            try:
                with self._lock:
                    found = self._kept.get(key)
                if found is not None:
                    return found[0]
                value = make()
                self.put(key, value)
                return value
            finally:
                with self._lock:
                    self._making.pop(key, None)

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value."""
        weight = self._weigh(value)
        leaving: list[Value] = []
        with self._lock:
            before = self._kept.pop(key, None)
            if before is not None:
                self.weight -= before[1]
                leaving.append(before[0])
            if weight * 2 <= self._most:
                self._kept[key] = value, weight
                self.weight += weight
            while self.weight > self._most:
                _, (old, old_weight) = self._kept.popitem(last=False)
                self.weight -= old_weight
                leaving.append(old)
        for old in leaving:
            self._drop(old)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            leaving = [value for value, _ in self._kept.values()]
            self._kept.clear()
            self.weight = 0
        for old in leaving:
            self._drop(old)
