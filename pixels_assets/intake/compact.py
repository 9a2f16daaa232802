"""A map from names to numbers that stays small for millions of names.

Holds one data structure. Must not know what the names or numbers mean.
"""

from array import array
from hashlib import blake2b


class NameMap:
    """Map names to positive numbers, about 32 bytes per name at worst, however long the names are.

    A name is represented by 64 bits of its BLAKE2b digest, the same on every machine. Two names that share them are taken for the same name; at
    two million names that is one chance in ten million, so use it only where that mistake does no harm.

    Examples
    --------
    >>> seen = NameMap()
    >>> seen.get(b"a"), seen.put(b"a", 7), seen.get(b"a")
    (0, None, 7)
    """

    __slots__ = ("_keys", "_used", "_values")

    def __init__(self) -> None:
        self._keys = array("Q", bytes(8 * 64))
        self._values = array("Q", bytes(8 * 64))
        self._used = 0

    def get(self, name: bytes) -> int:
        """Return the number of a name, 0 when it has none."""
        return self._values[_slot(self._keys, _key(name))]

    def put(self, name: bytes, value: int) -> None:
        """Give a name a number from 1 to 2**64 - 1."""
        key = _key(name)
        at = _slot(self._keys, key)
        if not self._keys[at]:
            self._used += 1
            self._keys[at] = key
        self._values[at] = value
        if self._used * 3 > len(self._keys) * 2:
            self._grow()

    def count(self, name: bytes) -> int:
        """Add one to the number of a name and return it: 1 at the first sight of the name."""
        number = self.get(name) + 1
        self.put(name, number)
        return number

    def _grow(self) -> None:
        size = len(self._keys) * 2
        keys, values = array("Q", bytes(8 * size)), array("Q", bytes(8 * size))
        for key, value in zip(self._keys, self._values, strict=True):
            if key:
                at = _slot(keys, key)
                keys[at], values[at] = key, value
        self._keys, self._values = keys, values


def _key(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big") or 1  # 0 marks a free slot


def _slot(keys: "array[int]", key: int) -> int:
    """Index of the key, or of the free slot where it belongs."""
    mask = len(keys) - 1
    at = key & mask
    while keys[at] and keys[at] != key:
        at = (at + 1) & mask
    return at
