"""An object's DICOM JSON read back, in memory that does not grow far beyond the text.

Holds the way from the column `meta` to a data set. Must not know tables.

Almost all of a large one is numbers, such as the contours of a structure set, and each would be an object of 24 bytes in a list of pointers. So long
lists of numbers become arrays, or are left out where nobody will look at them.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

LARGE_BYTES = 1024 * 1024
"""From this size of the text on, long lists are looked for."""

DataSet = dict[str, Any]

_NUMBER = rb"[-+0-9.eE]+"
_LONG = re.compile(rb'("Value":\[%s),((?:%s,){62}[-+0-9.eE,]+)\]' % (_NUMBER, _NUMBER))  # within a text its quotes would be escaped


def read_json(meta: bytes | memoryview) -> DataSet:
    """Read a data set whole: a value of more than 64 floating point numbers of a large one is a NumPy array.

    Raises
    ------
    ValueError
        It is nested deeper than Python goes.
    """
    if len(meta) < LARGE_BYTES:
        return _loaded(meta)
    arrays: list[Any] = []

    def put_aside(found: re.Match[bytes]) -> bytes:
        numbers = orjson.loads(found[1][8:] + b"," + found[2] + b"]")
        arrays.append(np.array(numbers) if set(map(type, numbers)) == {float} else numbers)
        return b'"Value":%d' % (len(arrays) - 1)

    data = _loaded(_without_long(meta, put_aside))
    stack = [data] if arrays else []
    while stack:
        for element in stack.pop().values():
            value = element.get("Value")
            if type(value) is int:
                element["Value"] = arrays[value]
            elif element.get("vr") == "SQ" and value:
                stack += [item for item in value if item]
    return data


def read_outline(meta: bytes | memoryview) -> DataSet:
    """Read a data set of which, when it is large, long lists of numbers have their first one only.

    Raises
    ------
    ValueError
        It is nested deeper than Python goes.
    """
    return _loaded(meta if len(meta) < LARGE_BYTES else _without_long(meta, lambda found: found[1] + b"]"))


def _without_long(meta: bytes | memoryview, replace: Callable[[re.Match[bytes]], bytes]) -> bytes:
    pieces: list[bytes | memoryview] = []
    position = 0
    for found in _LONG.finditer(meta):
        pieces += (meta[position : found.start()], replace(found))
        position = found.end()
    return b"".join([*pieces, meta[position:]])


def _loaded(text: bytes | memoryview) -> DataSet:
    try:
        return orjson.loads(text)  # type: ignore[no-any-return]
    except orjson.JSONDecodeError:  # nested deeper than it goes
        try:
            return json.loads(bytes(text))  # type: ignore[no-any-return]
        except RecursionError as error:
            msg = "a data set is nested too deep to be read"
            raise ValueError(msg) from error
