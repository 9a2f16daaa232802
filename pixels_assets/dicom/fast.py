"""A header's bytes to DICOM JSON and typed values in one flat pass that remembers what it has seen.

Holds the shortcut for well-formed little endian data sets. It gives exactly what the reading through pydicom gives (`elements`, `json_model`,
`values`), or gives up with `UnusualHeader`, and that reading decides. Must not guess, note structural damage, or read streams.

Most elements of most headers were met before, byte for byte, in another file of the series. So what an element becomes is kept by its raw bytes
(tag, VR, length and value), apart for each `_Context` that it may depend on. What is met for the first time is converted here where that is plain,
and by pydicom, as the only element of a data set, where it is not. Elements that follow each other unchanged in two files are joined to a `_Run`,
which costs one comparison in the third. What is longer than a key may be is never copied as bytes or remembered: a long sequence is walked where it
lies, and its JSON stays in pieces until the whole object's is joined.
"""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import isfinite
from typing import Any, Final, NamedTuple

import orjson
from pydicom import Dataset, config
from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.filewriter import _AMBIGUOUS_OB_OW_TAGS, _AMBIGUOUS_US_SS_TAGS, _OVERLAY_DATA_TAGS
from pydicom.multival import MultiValue
from pydicom.tag import _LUT_DESCRIPTOR_TAGS, BaseTag
from pydicom.valuerep import AMBIGUOUS_VR, EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32, PersonName

from pixels_assets.dicom.attributes import ATTRIBUTES, Attribute
from pixels_assets.dicom.elements import SPECIFIC_CHARACTER_SET, UNDEFINED_LENGTH, Charset, charset_of
from pixels_assets.dicom.json_model import BINARY_VRS, BULK_BYTES, PIXEL_TAGS, binary, element_text, reference, vr_of
from pixels_assets.dicom.notes import listening
from pixels_assets.dicom.transfer_syntax import DEFLATED, Encoding, declared_encoding
from pixels_assets.dicom.values import PARTS, typed_value

MEMORY_BYTES = 48 * 1024 * 1024
"""About this much is remembered per process; then everything is forgotten at once, and learnt again within a few files."""
MAX_DEPTH = 40
"""Sequences within sequences that are read here."""

_MAX_CONTEXTS = 2000
_MAX_KEY_BYTES = 64 * 1024
_FEW_VALUES = 64
_MANY_BYTES = 512
_LEAST_STRETCH = 4  # elements that are worth a run: numbers that recur in other series are followed by few
_MAX_RUN_BYTES = 256 * 1024
_ENTRY_BYTES = 400  # of a remembered element, beyond its bytes and its text
_DEFER_BYTES = 1024 * 1024
_HEAD_BYTES = 12  # of an element at most: tag, VR and length
_MAX_VALUE_BYTES = 32 * 1024 * 1024  # values that reach further into the file are not read for one element, unless it is a sequence

_ITEM, _ITEM_END, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
_SHORT = frozenset(str(vr).encode() for vr in EXPLICIT_VR_LENGTH_16)
_LONG = frozenset(str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32)
_VR_NAMES = {vr: vr.decode() for vr in _SHORT | _LONG}
_PIXEL_VRS = BINARY_VRS - {"UN"}
_AMBIGUOUS = frozenset(str(vr) for vr in AMBIGUOUS_VR)
_implicit_head = struct.Struct("<HHL").unpack_from
_explicit_head = struct.Struct("<HH2sH").unpack_from
_long = struct.Struct("<L").unpack_from

_ODD = b"?"
_TRANSFER_SYNTAX_UID, _PIXEL_REPRESENTATION = 0x00020010, 0x00280103
_BEFORE_PIXELS, _LAST_TAG = 0x7FE00007, 0xFFFDFFFF
_OF_ONE_OBJECT = frozenset({0x00020003, 0x00080018})  # its UIDs: no other file has them, so they are not remembered
_BEFORE_CHARSET = frozenset({-1, 0x00080000, 0x00080001})
_WITHOUT_TEXT = frozenset({"CS", "UI", "UL", "US"})
_ATTRIBUTES: dict[int, list[Attribute]] = {}  # of the top level, by tag
_WITHIN: dict[int, list[Attribute]] = {}  # by the tag of the sequence whose items hold them
_GATHERED: dict[int, str] = {}  # keyword by tag
for _attribute in ATTRIBUTES:
    if _attribute.kind == "gathered":
        _GATHERED[_attribute.tag] = _attribute.keyword
    elif _attribute.sequence is not None:
        _WITHIN.setdefault(_attribute.sequence, []).append(_attribute)
    else:
        _ATTRIBUTES.setdefault(_attribute.tag, []).append(_attribute)
_INNER = {attribute.tag for attributes in _WITHIN.values() for attribute in attributes} | set(_GATHERED)
_VALUED = frozenset(_ATTRIBUTES) | frozenset(_WITHIN) | _INNER
_NOTHING: Final[Mapping[Any, Any]] = {}
_NO_VALUES: Final[dict[str, object]] = dict.fromkeys(attribute.keyword for attribute in ATTRIBUTES)
# Outside of group 0028: SOP Class UID, pixel spacings, maximum of a segmentation, presentation shape, functional groups, offset tables.
_DESCRIBING = frozenset({0x00080016, 0x00181164, 0x00182010, 0x0062000E, 0x20500020, 0x52009229, 0x52009230, 0x7FE00001, 0x7FE00002})

Described = dict[int, tuple[str, bytes]]
Creator = tuple[int, str | None, bytes]


class UnusualHeader(Exception):  # noqa: N818 - no error: it sends a header to pydicom
    """These bytes need the reading through pydicom."""


class TooShort(Exception):  # noqa: N818 - no error: it asks for more bytes
    """The bytes end before the header does; it goes on at least to `least`."""

    def __init__(self, least: int = 0) -> None:
        super().__init__(least)
        self.least = least


class Pixels(NamedTuple):
    """The pixel data element: where its tag and its value begin, and the length of its value, bytes; `UNDEFINED_LENGTH` when encapsulated."""

    tag: int
    offset: int
    value_offset: int
    length: int


# -------------------------------------------------------------------------------------------------------------------------- what is remembered


class _Effect(NamedTuple):
    """What an element does beside its text in the JSON; most elements do little, so there is one for each that does and nothing is changed later.

    Parameters
    ----------
    values, value_notes : mapping
        Typed values, and what was odd about them, by keyword.
    notes : list of str
    described : mapping
        What describes the pixel data.
    inner : mapping of int to list
        Values of an element of an item that columns are made of, by its tag.
    gathered : mapping of int to list
        Values of such elements within a sequence, by tag, in the order of `pixels_assets.dicom.values.gathered`.
    is_rare : bool
        Whether it has notes or gathered values.
    """

    values: Mapping[str, object] = _NOTHING
    notes: Sequence[str] = ()
    value_notes: Mapping[str, str] = _NOTHING
    described: Mapping[int, tuple[str, bytes]] = _NOTHING
    inner: Mapping[int, list[object]] = _NOTHING
    gathered: Mapping[int, list[object]] = _NOTHING
    is_rare: bool = False


@dataclass(slots=True)
class _Draft:
    """An effect in the making."""

    values: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    value_notes: dict[str, str] = field(default_factory=dict)
    described: Described = field(default_factory=dict)
    inner: dict[int, list[object]] = field(default_factory=dict)
    gathered: dict[int, list[object]] = field(default_factory=dict)

    def sealed(self) -> _Effect | None:
        """Give the effect; None when there is none."""
        if not (self.values or self.notes or self.value_notes or self.described or self.inner or self.gathered):
            return None
        is_rare = bool(self.notes or self.value_notes or self.gathered)
        return _Effect(self.values, self.notes, self.value_notes, self.described, self.inner, self.gathered, is_rare)

    def gather(self, values: Mapping[int, list[object]]) -> None:
        for tag, found in values.items():
            self.gathered.setdefault(tag, []).extend(found)

    def add(self, other: _Effect) -> None:
        self.values.update(other.values)
        self.described.update(other.described)
        if other.is_rare:
            self.gather(other.gathered)
            self.notes += other.notes
            self.value_notes.update(other.value_notes)


class _Entry:
    """What one element becomes.

    Parameters
    ----------
    tag : int
    text : str
        Its member of the JSON object, key included; empty when nothing of it can be kept.
    effect : _Effect or None
    after : _Context or None
        What holds behind it; None: the same as before.
    is_kept : bool
        Whether it may be remembered by its bytes: not when references lead to it by a path that depends on what is around.

    Attributes
    ----------
    run : _Run, None or False
        What follows it; None before that was learnt, False when there is nothing to be learnt.
    """

    __slots__ = ("after", "effect", "is_kept", "run", "tag", "text")

    def __init__(self, tag: int, text: str, effect: _Effect | None = None, after: "_Context | None" = None, *, is_kept: bool = True) -> None:
        self.tag, self.text, self.effect, self.after, self.is_kept = tag, text, effect, after, is_kept
        self.run: _Run | bool | None = None


class _Run:
    """Elements that follow each other: their bytes, and what they become together.

    Parameters
    ----------
    data : bytes
    entries : list of _Entry
        At least one.
    stops : list of int
        Where each ends in `data`.
    contexts : list of _Context
        What holds behind each.
    """

    __slots__ = ("context", "contexts", "data", "effect", "entries", "last", "stops", "text")

    def __init__(self, data: bytes, entries: "list[_Entry]", stops: list[int], contexts: "list[_Context]") -> None:
        self.data, self.entries, self.stops, self.contexts = data, entries, stops, contexts
        self.text = ",".join([entry.text for entry in entries if entry.text])
        self.last, self.context = entries[-1].tag, contexts[-1]
        draft = _Draft()
        for entry in entries:
            if entry.effect is not None:
                draft.add(entry.effect)
        self.effect = draft.sealed()

    def begin(self, data: bytes, start: int) -> "_Run | bool":
        """Shorten it to the elements that also stand at `start` of other bytes; False when there are none."""
        count = 0
        while count < len(self.stops) and data.startswith(self.data[: self.stops[count]], start):
            count += 1
        if not count:
            return False
        return _Run(self.data[: self.stops[count - 1]], self.entries[:count], self.stops[:count], self.contexts[:count])


class _Context:
    """What the meaning of an element's bytes may depend on.

    Parameters
    ----------
    implicit : bool
        VRs are not written.
    charset : str or list of str
        Python encodings of text.
    kind : str
        ``meta`` for group 0002, ``top`` for the data set, ``item`` for one within a sequence.
    pixel_representation : bytes or None
        Where VRs are not written, the value of (0028,0103) *Pixel Representation* that pydicom goes by: two bytes, or none when it has none.
        None: not met so far, or in an item not known. `_ODD`: met, but not what it should be.
    group : int
        Group of private elements to which `creators` belong, 0 for none.
    creators : tuple of (int, str or None, bytes)
        Tags, VRs and values of the private creators met in it.

    Attributes
    ----------
    base : _Context
        What holds in another group.
    memo : dict of bytes to _Entry
        Elements by their bytes.
    plans : dict of (int, bytes) to _Plan or None
        By tag and VR, for elements that were not met before.
    vrs : dict of int to str
        VRs that are not written, by tag; empty when pydicom has to be asked at each element.
    is_plain : bool
        Whether printable ASCII means itself unless it is escaped.
    """

    __slots__ = ("base", "charset", "creators", "group", "implicit", "inner", "is_plain", "kind", "memo", "pixel_representation", "plans", "vrs")

    def __init__(
        self, implicit: bool, charset: Charset, kind: str, pixel_representation: bytes | None, group: int, creators: tuple[Creator, ...]
    ) -> None:
        self.implicit, self.charset, self.kind = implicit, charset, kind
        self.pixel_representation, self.group, self.creators = pixel_representation, group, creators
        self.base = _context(implicit, charset, kind, pixel_representation) if group else self
        self.inner: dict[bytes | None, _Context] = {}
        self.memo: dict[bytes, _Entry] = {}
        self.plans: dict[tuple[int, bytes | None], _Plan | None] = {}
        self.vrs: dict[int, str] = {}
        self.is_plain = _is_plain(charset if isinstance(charset, str) else charset[0])

    def item(self, tag: int, *, is_delimited: bool) -> "_Context":
        """Give what holds in an item of a sequence: pydicom does not hand the Pixel Representation on to sequences of undefined length."""
        known = (b"" if is_delimited else self._handed_on(tag)) if self.implicit else None
        found = self.inner.get(known)
        if found is None:
            found = self.inner[known] = _context(self.implicit, self.charset, "item", known)
        return found

    def _handed_on(self, tag: int) -> bytes | None:
        known = self.pixel_representation
        if tag < _PIXEL_REPRESENTATION or known == _ODD:
            return None  # it may still come
        return b"" if known is None and self.kind == "top" else known


class _Memory:
    """All contexts, and about how many bytes they remember."""

    def __init__(self) -> None:
        self.contexts: dict[object, _Context] = {}
        self.origins: dict[tuple[bool, str], _Context] = {}
        self.beginnings: dict[tuple[str, bytes], tuple[bytes, int, int]] = {}
        self.size = 0

    @property
    def is_full(self) -> bool:
        return self.size > MEMORY_BYTES or len(self.contexts) > _MAX_CONTEXTS

    def keep(self, context: _Context, raw: bytes, entry: _Entry) -> None:
        if len(raw) <= _MAX_KEY_BYTES and not self.is_full:  # one long header alone could fill it
            context.memo[raw] = entry
            self.size += len(raw) + len(entry.text) + _ENTRY_BYTES

    def keep_plan(self, context: _Context, tag: int, vr: bytes | None, plan: "_Plan | None") -> None:
        if not self.is_full:  # a header of a million tags would need a million
            context.plans[tag, vr] = plan
            self.size += _ENTRY_BYTES

    def keep_beginning(self, first: tuple[str, bytes], second: tuple[bytes, int, int]) -> None:
        """Remember that a data set of this transfer syntax may begin with these two heads: the second's place and the end of its value go with it."""
        if not self.is_full:
            self.size += 0 if first in self.beginnings else _ENTRY_BYTES
            self.beginnings[first] = second

    def forget(self) -> None:
        self.contexts.clear()
        self.origins.clear()
        self.beginnings.clear()
        self.size = 0


_memory = _Memory()


def forget() -> None:
    """Forget everything that was learnt."""
    _memory.forget()


def remembered() -> int:
    """Give about how many bytes are remembered."""
    return _memory.size


def _context(
    implicit: bool,
    charset: Charset,
    kind: str,
    pixel_representation: bytes | None = None,
    group: int = 0,
    creators: tuple[Creator, ...] = (),
) -> _Context:
    key = (implicit, charset if isinstance(charset, str) else tuple(charset), kind, pixel_representation, group, creators)
    found = _memory.contexts.get(key)
    if found is None:
        found = _memory.contexts[key] = _Context(implicit, charset, kind, pixel_representation, group, creators)
    return found


def _origin(*, implicit: bool, kind: str) -> _Context:
    """Give what holds at the beginning of a data set, or of the file meta information."""
    found = _memory.origins.get((implicit, kind))
    if found is None:
        found = _memory.origins[implicit, kind] = _context(implicit, default_encoding, kind)
    return found


@lru_cache(maxsize=256)
def _is_plain(encoding: str) -> bool:
    printable = bytes(range(0x20, 0x7F))
    try:
        return printable.decode(encoding) == printable.decode("ascii")
    except (LookupError, UnicodeError):
        return False


# ---------------------------------------------------------------------------------------------------------------------------------- the pass


class HeaderParser:
    """Reads one header.

    Parameters
    ----------
    data : bytes
        From the preamble on, at least as far as the header goes.
    length : int
        Bytes of the whole file.

    Attributes
    ----------
    file_meta, meta : list of str
        JSON objects of group 0002 and of the data set, without braces, in pieces: commas join them. A long sequence is many pieces.
    declared : str
        (0002,0010) *Transfer Syntax UID*.
    encoding : Encoding
        Of the data set.
    pixels : Pixels or None
        The pixel data element, at which reading stopped; it is the last of `meta`.

    Raises
    ------
    UnusualHeader
        pydicom has to read this. From every method.
    TooShort
        The header goes on behind `data`.
    """

    def __init__(self, data: bytes, length: int) -> None:
        if _memory.is_full:
            _memory.forget()
        self._data, self._length = data, length
        self._is_whole = len(data) >= length
        self._effects: list[_Effect] = []
        self._misfits: list[tuple[_Entry, int]] = []
        self._lessons: list[tuple[list[_Entry], list[int], list[_Context]]] = []
        self._context, self._last = _origin(implicit=False, kind="meta"), -1
        self.file_meta: list[str] = []
        self.meta: list[str] = []
        self.pixels: Pixels | None = None
        if data[128:134] != b"DICM\x02\x00":
            raise UnusualHeader
        try:
            self._parse()
        except struct.error:  # the bytes end within an element's head
            raise self._cut() from None
        self._learn()

    def rest(self, data: bytes, position: int) -> None:
        """Read the elements behind the pixel data: all bytes of `data` from `position` on."""
        self._data, self._is_whole = data, True
        try:
            if self._top(position, _LAST_TAG, self.meta) != len(data):
                raise UnusualHeader
        except struct.error:
            raise UnusualHeader from None
        self._learn()

    def effect(self) -> tuple[dict[str, object], list[str], dict[str, str]]:
        """Typed values by keyword, notes on elements, and notes on typed values by keyword."""
        values = _NO_VALUES.copy()
        notes: list[str] = []
        value_notes: dict[str, str] = {}
        gathered: dict[int, dict[str, None]] = {}
        for effect in self._effects:
            if typed := effect.values:
                values.update(typed)
            if effect.is_rare:
                notes += effect.notes
                value_notes.update(effect.value_notes)
                for tag, found in effect.gathered.items():
                    gathered.setdefault(tag, {}).update(dict.fromkeys(str(value) for value in found if value))
        for tag, distinct in gathered.items():
            values[_GATHERED[tag]] = list(distinct) or None
        return values, notes, value_notes

    def described(self) -> Described:
        """Give what describes the pixel data, see `pixels_assets.dicom.reader.Header`."""
        described: Described = {}
        for effect in self._effects:
            described.update(effect.described)
        return described

    def release(self) -> None:
        """Let go of the bytes; no more can be read then."""
        self._data = b""

    def _cut(self, least: int = 0) -> Exception:
        return UnusualHeader() if self._is_whole or least > self._length else TooShort(least)

    def _cut_within(self, context: _Context, tag: int, vr: bytes | None, start: int, stop: int) -> Exception:
        """Say what to do about a value of the top level that ends behind the bytes at hand."""
        is_worth_it = stop <= _MAX_VALUE_BYTES or _is_sequence(context, tag, vr, stop - start)
        return self._cut(stop) if is_worth_it else UnusualHeader()

    def _parse(self) -> None:
        position = self._top(132, 0x0002FFFF, self.file_meta)
        declared = [effect.values["TransferSyntaxUID"] for effect in self._effects if "TransferSyntaxUID" in effect.values]
        if not declared:
            raise UnusualHeader
        self.declared = str(declared[0])
        self.encoding = self._find_encoding(position)
        self._context, self._last = _origin(implicit=self.encoding.implicit, kind="top"), -1
        position = self._top(position, _BEFORE_PIXELS, self.meta)
        if position < len(self._data):
            group, number = _explicit_head(self._data, position)[:2]
            if group << 16 | number in PIXEL_TAGS:
                self._stop_at_pixels(position, group << 16 | number)
                return
            position = self._top(position, _LAST_TAG, self.meta)
        if not self._is_whole:
            raise TooShort
        if position != len(self._data) or not self.meta:
            raise UnusualHeader

    def _find_encoding(self, position: int) -> Encoding:
        """Give the declared encoding if the first two elements make sense in it: then `find_encoding` would not look for another."""
        data, last, begin = self._data, -1, position
        declared = declared_encoding(self.declared)
        first = self.declared, data[begin : begin + _HEAD_BYTES]
        second = _memory.beginnings.get(first)
        if second is not None and second[0] == data[begin + second[1] : begin + second[1] + _HEAD_BYTES] and begin + second[2] <= self._length:
            assert declared is not None  # as it was when this was met before
            return declared
        heads = []
        implicit = data[position + 4 : position + 6] not in _VR_NAMES
        if declared is None or declared != (implicit, True) or self.declared in DEFLATED:
            raise UnusualHeader
        for _ in range(2):
            heads.append(position)
            start = position + 8
            if start > len(data):
                raise self._cut()
            if implicit:
                group, number, length = _implicit_head(data, position)
                # Two capitals would count as a VR.
                if 0x40 < data[position + 4] < 0x5B and 0x40 < data[position + 5] < 0x5B:
                    raise UnusualHeader
            else:
                group, number, vr, length = _explicit_head(data, position)
                if vr in _LONG:
                    (length,) = _long(data, start)
                    start += 4
                elif vr not in _SHORT:
                    raise UnusualHeader
            tag = group << 16 | number
            if tag <= last or tag < 0x00030000 or length == UNDEFINED_LENGTH or start + length > self._length or not _is_known(tag):
                raise UnusualHeader
            position, last = start + length, tag
        _memory.keep_beginning(first, (data[heads[1] : heads[1] + _HEAD_BYTES], heads[1] - begin, position - begin))
        return declared

    def _stop_at_pixels(self, position: int, tag: int) -> None:
        data, start = self._data, position + 8
        if self.encoding.implicit:
            length = _implicit_head(data, position)[2]
            vr = str(dictionary_VR(tag)) if tag != 0x7FE00010 else "OB" if length == UNDEFINED_LENGTH else "OW"
        else:
            written = data[position + 4 : position + 6]
            if written not in _LONG or _VR_NAMES[written] not in _PIXEL_VRS:
                raise UnusualHeader
            vr = _VR_NAMES[written]
            (length,) = _long(data, start)
            start += 4
        self.meta.append(_pixel_text(tag, vr, is_empty=not length))
        self.pixels = Pixels(tag, position, start, length)
        self._last = tag

    def _top(self, position: int, most: int, texts: list[str]) -> int:
        """Read elements of the data set or the file meta information up to a tag beyond `most`, and return where that is.

        The hottest loop of the project: names are local, an element that was met before costs a slice and a look-up, a run one comparison.
        """
        data, end = self._data, len(self._data)
        context, last = self._context, self._last
        implicit, memo, block = context.implicit, context.memo, context.group
        effects, append = self._effects, texts.append
        # Elements met before, one behind the other: lessons are learnt from them.
        stretch: list[_Entry] = []
        stops: list[int] = []
        contexts: list[_Context] = []
        vr: bytes | None = None
        entry: _Entry | None
        while position < end:
            start = position + 8
            if implicit:
                group, number, length = _implicit_head(data, position)
                tag = group << 16 | number
                if tag > most:
                    break
            else:
                group, number, vr, length = _explicit_head(data, position)
                tag = group << 16 | number
                if tag > most:
                    break
                if vr not in _SHORT:
                    if vr not in _LONG:
                        raise UnusualHeader
                    (length,) = _long(data, start)
                    start += 4
            if tag <= last:
                raise UnusualHeader
            if block and group != block:
                context = context.base
                memo, block = context.memo, 0
            stop = start + length
            if stop > end:
                if length != UNDEFINED_LENGTH:
                    raise self._cut_within(context, tag, vr, start, stop)
                entry, stop, is_met = self._undefined(context, tag, vr, position, start, end, "", 0, texts)
            elif length > BULK_BYTES and (long := self._long(context, tag, vr, start, stop, "", 0, texts)) is not None:
                entry, is_met = long, False
            else:
                raw = data[position:stop]
                entry = memo.get(raw)
                is_met = entry is not None
                if entry is None:
                    entry = self._new(context, tag, vr, raw, start, stop, "", 0)
            if entry.text:
                append(entry.text)
            if entry.effect is not None:
                effects.append(entry.effect)
            if entry.after is not None:
                if tag == SPECIFIC_CHARACTER_SET:
                    if last not in _BEFORE_CHARSET:
                        raise UnusualHeader
                    # Only the head of a run is seen to have nothing before it that it would change.
                    if len(stretch) >= _LEAST_STRETCH:
                        self._lessons.append((stretch, stops, contexts))
                    stretch, stops, contexts = [], [], []
                context = entry.after
                memo, block = context.memo, context.group
            last, position = tag, stop
            run = entry.run
            if is_met and not run:
                if stretch or run is None:
                    stretch.append(entry)
                    stops.append(stop)
                    contexts.append(context)
                continue
            if len(stretch) >= _LEAST_STRETCH:
                self._lessons.append((stretch, stops, contexts))
            if stretch:
                stretch, stops, contexts = [], [], []
            if isinstance(run, _Run):
                if not data.startswith(run.data, stop):
                    self._misfits.append((entry, stop))
                    continue
                if run.text:
                    append(run.text)
                if run.effect is not None:
                    effects.append(run.effect)
                last, position, context = run.last, stop + run.stops[-1], run.context
                memo, block = context.memo, context.group
        if len(stretch) >= _LEAST_STRETCH:
            self._lessons.append((stretch, stops, contexts))
        self._context, self._last = context, last
        return position

    def _learn(self) -> None:
        """Make runs of elements that were met before, and shorten those that were not met again as they were."""
        for entry, stop in self._misfits:
            if isinstance(entry.run, _Run):
                entry.run = entry.run.begin(self._data, stop)
        for stretch, stops, contexts in self._lessons:
            start = stops[0]
            if stops[-1] - start <= _MAX_RUN_BYTES:
                run = _Run(self._data[start : stops[-1]], stretch[1:], [stop - start for stop in stops[1:]], contexts[1:])
                stretch[0].run = run
                _memory.size += len(run.data) + len(run.text) + _ENTRY_BYTES
        self._misfits, self._lessons = [], []

    def _long(self, context: _Context, tag: int, vr: bytes | None, start: int, stop: int, path: str, depth: int, texts: list[str]) -> _Entry | None:
        """Make the entry of what is not looked up: long binary values, and what is too long to be remembered; None for all else.

        The JSON of a long sequence goes to `texts`, in pieces.
        """
        length = stop - start
        entry = _bulk(context, tag, vr, self._data, start, stop, path)
        if entry is not None or length <= _MAX_KEY_BYTES:
            return entry
        if not _is_sequence(context, tag, vr, length):
            return _convert(context, tag, vr, self._data[start:stop], path)
        pieces, draft, _ = self._items(context, tag, start, stop, f"{path}{tag:08X}/", depth + 1, is_delimited=False)
        texts += pieces
        return self._sequence_entry(context, tag, "", draft, start, stop, depth)

    def _new(self, context: _Context, tag: int, vr: bytes | None, raw: bytes, start: int, stop: int, path: str, depth: int) -> _Entry:
        """Make the entry of an element of defined length that was not met before, and remember it."""
        if start != stop and _is_sequence(context, tag, vr, stop - start):
            pieces, draft, _ = self._items(context, tag, start, stop, f"{path}{tag:08X}/", depth + 1, is_delimited=False)
            entry = self._sequence_entry(context, tag, ",".join(pieces), draft, start, stop, depth)
        else:
            entry = _convert(context, tag, vr, self._data[start:stop], path)
        if entry.is_kept:
            _memory.keep(context, raw, entry)
        return entry

    def _undefined(
        self, context: _Context, tag: int, vr: bytes | None, position: int, start: int, end: int, path: str, depth: int, texts: list[str]
    ) -> tuple[_Entry, int, bool]:
        """Read a sequence of undefined length; give its entry, where it stops and whether it was met before.

        The JSON of a long one goes to `texts`, in pieces.
        """
        if vr != b"SQ":
            known = _public_vr(tag) if vr is None else ""
            if known != "SQ" and (known is not None or not self._data.startswith(_ITEM, start)):
                raise UnusualHeader
        pieces, draft, stop = self._items(context, tag, start, end, f"{path}{tag:08X}/", depth + 1, is_delimited=True)
        if stop - position > _MAX_KEY_BYTES:
            texts += pieces
            return self._sequence_entry(context, tag, "", draft, start, stop, depth), stop, False
        raw = self._data[position:stop]
        met = context.memo.get(raw)
        if met is not None:
            return met, stop, True
        entry = self._sequence_entry(context, tag, ",".join(pieces), draft, start, stop, depth)
        if entry.is_kept:
            _memory.keep(context, raw, entry)
        return entry, stop, False

    def _sequence_entry(self, context: _Context, tag: int, text: str, draft: _Draft, start: int, stop: int, depth: int) -> _Entry:
        if tag in (_INNER if context.kind == "item" else _ATTRIBUTES):
            raise UnusualHeader
        _describe(context, tag, "SQ", self._data[start:stop] if context.kind == "top" and _describes(tag) else b"", draft)
        # The path to what is in the top level's sequences is always the same.
        return _Entry(tag, text, draft.sealed(), is_kept=depth == 0 or '"BulkDataURI"' not in text)

    def _items(
        self, context: _Context, tag: int, position: int, end: int, path: str, depth: int, *, is_delimited: bool
    ) -> tuple[list[str], _Draft, int]:
        """Read the items of a sequence, DICOM PS3.5 7.5; give its JSON, key included, as pieces for commas, their effects and where they stop."""
        if depth > MAX_DEPTH:
            raise UnusualHeader
        data, draft, pieces, count = self._data, _Draft(), list[str](), 0
        inner = context.item(tag, is_delimited=is_delimited)
        while is_delimited or position < end:
            head = data[position : position + 8]
            if is_delimited and head == _SEQUENCE_END:
                position += 8
                break
            if head[:4] != _ITEM or len(head) < 8:
                raise self._cut() if position + 8 > len(data) else UnusualHeader
            (length,) = _long(head, 4)
            position += 8
            first = len(pieces)
            item_path = f"{path}{count}/"
            if length == UNDEFINED_LENGTH:
                position = self._item(inner, position, end, item_path, depth, pieces, draft)
                if data[position : position + 8] != _ITEM_END:
                    raise self._cut() if position + 8 > len(data) else UnusualHeader
                position += 8
            else:
                if position + length > end:
                    raise self._cut() if end == len(data) else UnusualHeader
                if self._item(inner, position, position + length, item_path, depth, pieces, draft) != position + length:
                    raise UnusualHeader
                position += length
            count += 1
            if len(pieces) == first:
                pieces.append("{}")
            else:
                pieces[first] = "{" + pieces[first]
                pieces[-1] += "}"
        if depth == 1 and tag in _WITHIN and context.kind == "top":
            for attribute in _WITHIN[tag]:
                _type_value(attribute, draft.inner.get(attribute.tag, []), draft)
        draft.inner = {}
        key = f'"{tag:08X}":{{"vr":"SQ","Value":['
        if count:
            pieces[0] = key + pieces[0]
            pieces[-1] += "]}"
        else:
            pieces.append(key + "]}")
        return pieces, draft, position

    def _item(self, context: _Context, position: int, end: int, path: str, depth: int, texts: list[str], draft: _Draft) -> int:
        """Read the elements of an item up to its end or delimiter, and return where that is."""
        data, last, begin = self._data, -1, position
        nested: list[_Effect] = []
        vr: bytes | None = None
        while position < end:
            start = position + 8
            if context.implicit:
                group, number, length = _implicit_head(data, position)
                tag = group << 16 | number
                if tag > _LAST_TAG:
                    break
            else:
                group, number, vr, length = _explicit_head(data, position)
                tag = group << 16 | number
                if tag > _LAST_TAG:
                    break
                if vr not in _SHORT:
                    if vr not in _LONG:
                        raise UnusualHeader
                    (length,) = _long(data, start)
                    start += 4
            if tag <= last:
                raise UnusualHeader
            if context.group and group != context.group:
                context = context.base
            stop = start + length
            entry: _Entry | None
            if length == UNDEFINED_LENGTH:
                entry, stop, _ = self._undefined(context, tag, vr, position, start, end, path, depth, texts)
            elif stop > end:
                raise self._cut() if end == len(data) else UnusualHeader
            elif length <= BULK_BYTES or (entry := self._long(context, tag, vr, start, stop, path, depth, texts)) is None:
                raw = data[position:stop]
                entry = context.memo.get(raw)
                if entry is None:
                    entry = self._new(context, tag, vr, raw, start, stop, path, depth)
            if entry.text:
                texts.append(entry.text)
            if entry.effect is not None:
                draft.notes += entry.effect.notes
                if entry.effect.gathered:
                    nested.append(entry.effect)
                for inner, values in entry.effect.inner.items():
                    draft.inner.setdefault(inner, []).extend(values)
                    if inner in _GATHERED:
                        draft.gather({inner: values})
            if entry.after is not None:
                if tag == SPECIFIC_CHARACTER_SET and last not in _BEFORE_CHARSET and not self._is_without_text(context, begin, position):
                    raise UnusualHeader
                context = entry.after
            last, position = tag, stop
        for one in nested:
            draft.gather(one.gathered)
        return position

    def _is_without_text(self, context: _Context, position: int, end: int) -> bool:
        """Whether the elements up to `end` mean the same in all character sets, as what is before it in the records of a DICOMDIR."""
        while position < end:
            if context.implicit:
                group, number, length = _implicit_head(self._data, position)
                name = _public_vr(group << 16 | number)
            else:
                *_, vr, length = _explicit_head(self._data, position)
                name = _VR_NAMES[vr]
            if name not in _WITHOUT_TEXT:
                return False
            position += 8 + length
        return True


# ---------------------------------------------------------------------------------------------------------------------- elements met first time

_UNWRITTEN = (None, b"UN")


@lru_cache(maxsize=8192)
def _is_known(tag: int) -> bool:
    """Whether a tag may begin a data set, as `find_encoding` has it."""
    return dictionary_has_tag(tag) or not tag & 0xFFFF or (tag >> 16 & 1 == 1 and tag >> 16 > 8)


@lru_cache(maxsize=8192)
def _public_vr(tag: int) -> str | None:
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return None


def _resolve(context: _Context, tag: int, vr: bytes | None, length: int) -> str:
    """Give the VR of an element where it is not written, as pydicom decides it; empty when pydicom has something to say about that."""
    if length >= 0xFFFF and vr is not None and not tag >> 16 & 1:
        return "UN"  # too long for another VR with a written length
    found = context.vrs.get(tag)
    if found is None:
        with listening() as notes:
            try:
                found = vr_of(_raw(context, tag, vr, b"\0\0"), _around(context))
            except Exception:  # a damaged private creator; pydicom is asked again, for the whole element
                found = ""
            if notes.caught:
                found = ""
        context.vrs[tag] = found
    return found


def _is_sequence(context: _Context, tag: int, vr: bytes | None, length: int) -> bool:
    return vr == b"SQ" or (vr in _UNWRITTEN and _resolve(context, tag, vr, length) == "SQ")


def _raw(context: _Context, tag: int, vr: bytes | str | None, value: bytes) -> RawDataElement:
    name = vr.decode() if isinstance(vr, bytes) else vr
    return RawDataElement(BaseTag(tag), name, len(value), value or empty_value_for_VR(name, raw=True), 0, context.implicit, True)  # type: ignore[arg-type]


def _around(context: _Context) -> Dataset:
    """Make a data set of the elements that others depend on."""
    elements = {BaseTag(tag): _raw(context, tag, vr, value) for tag, vr, value in context.creators}
    if context.pixel_representation is not None and len(context.pixel_representation) == 2:
        elements[BaseTag(_PIXEL_REPRESENTATION)] = _raw(context, _PIXEL_REPRESENTATION, None, context.pixel_representation)
    dataset = Dataset(elements)  # type: ignore[arg-type]
    dataset.set_original_encoding(context.implicit, True, context.charset)
    return dataset


def _vr_name(context: _Context, tag: int, vr: bytes | None, length: int) -> str:
    """VR of an element that is not a sequence, ambiguous ones decided where that is plain; empty when pydicom has to decide with the value."""
    name = _VR_NAMES[vr] if vr is not None and vr != b"UN" else _resolve(context, tag, vr, length)
    if name not in _AMBIGUOUS:
        return name
    if tag in _OVERLAY_DATA_TAGS or (context.implicit and (tag in _AMBIGUOUS_OB_OW_TAGS or tag == 0x7FE00010)):
        return "OW"
    known = context.pixel_representation
    if tag not in _AMBIGUOUS_US_SS_TAGS or known is None or known == _ODD or (context.kind == "item" and tag < _PIXEL_REPRESENTATION):
        raise UnusualHeader
    if tag in _LUT_DESCRIPTOR_TAGS:
        return ""
    return "SS" if any(known) else "US"


def _bulk(context: _Context, tag: int, vr: bytes | None, data: bytes, start: int, stop: int, path: str) -> _Entry | None:
    """Make the entry of a long binary value, which need not be looked at; None when it is not binary."""
    if vr is not None and vr != b"UN" and not path and not _describes(tag):
        return _written_bulk(tag, vr)
    length = stop - start
    if vr in _UNWRITTEN:
        if _resolve(context, tag, vr, length) == "SQ":
            return None
        name = _vr_name(context, tag, vr, length)
    else:
        name = _VR_NAMES[vr]
    if name not in BINARY_VRS or tag in _VALUED:
        return None
    if length > _DEFER_BYTES and vr in _UNWRITTEN and _resolve(context, tag, vr, length) != name:
        raise UnusualHeader
    key = f"{tag:08X}"
    effect = _Effect(described={tag: (name, data[start:stop])}) if context.kind == "top" and _describes(tag) else None
    return _Entry(tag, f'"{key}":{reference(name, path + key)}', effect, is_kept=False)


@lru_cache(maxsize=4096)
def _written_bulk(tag: int, vr: bytes) -> _Entry | None:
    """Do the same at the top level, where it is always the same entry."""
    name = _VR_NAMES[vr]
    if name not in BINARY_VRS or tag in _VALUED:
        return None
    return _Entry(tag, f'"{tag:08X}":{reference(name, f"{tag:08X}")}', is_kept=False)


@lru_cache(maxsize=64)
def _pixel_text(tag: int, vr: str, *, is_empty: bool) -> str:
    """Member of the JSON object for pixel data."""
    key = f"{tag:08X}"
    return f'"{key}":{binary(vr, b"", key) if is_empty else reference(vr, key)}'


def _describes(tag: int) -> bool:
    return tag >> 16 == 0x0028 or tag in _DESCRIBING


def _describe(context: _Context, tag: int, vr: str, value: bytes, draft: _Draft) -> None:
    if context.kind == "top" and _describes(tag):
        draft.described[tag] = vr, value


class _Plan(NamedTuple):
    """How an element becomes an entry whatever its value, as long as `convert` takes that: it changes nothing else, and describes nothing."""

    convert: "Callable[[str, bytes, bool], Converted]"
    vr: str
    key: str
    attributes: list[Attribute]
    is_kept: bool


_UNPLANNED = _Plan(lambda vr, value, is_plain: None, "", "", [], is_kept=False)


def _plan(context: _Context, tag: int, vr: bytes | None) -> _Plan | None:
    """Make the plan of an element with a written VR; None when there is more to it."""
    name = _VR_NAMES.get(vr or b"", "")
    convert = _CONVERTERS.get(name)
    is_creator = tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF
    if convert is None or is_creator or _describes(tag) or tag in _WITHIN or tag in (SPECIFIC_CHARACTER_SET, _TRANSFER_SYNTAX_UID):
        return None
    if context.kind == "item":
        return None if tag in _INNER else _Plan(convert, name, f'"{tag:08X}":', [], is_kept=True)
    attributes = _ATTRIBUTES.get(tag, []) if context.kind == "top" else []
    return _Plan(convert, name, f'"{tag:08X}":', attributes, is_kept=tag not in _OF_ONE_OBJECT)


def _convert(context: _Context, tag: int, vr: bytes | None, value: bytes, path: str) -> _Entry:
    """Make the entry of an element that is not a sequence, or an empty one."""
    plan = context.plans.get((tag, vr), _UNPLANNED)
    if plan is _UNPLANNED:
        plan = _plan(context, tag, vr)
        _memory.keep_plan(context, tag, vr, plan)
    if plan and value:
        converted = plan.convert(plan.vr, value, context.is_plain)
        if converted is not None:
            effect = _plain_effect(plan.attributes, converted[1]) if plan.attributes else None
            return _Entry(tag, plan.key + converted[0], effect, is_kept=plan.is_kept)
    return _convert_unplanned(context, tag, vr, value, path)


def _plain_effect(attributes: list[Attribute], value: object) -> _Effect | None:
    """Give what a value does that only columns are made of."""
    try:
        return _Effect({attribute.keyword: typed_value(attribute.kind, value) for attribute in attributes})
    except Exception:  # it does not fit one of them
        draft = _Draft()
        for attribute in attributes:
            _type_value(attribute, value, draft)
        return draft.sealed()


def _convert_unplanned(context: _Context, tag: int, vr: bytes | None, value: bytes, path: str) -> _Entry:
    if tag in _WITHIN and context.kind == "top" and (value or vr not in (None, b"SQ")):
        raise UnusualHeader
    name = _vr_name(context, tag, vr, len(value))
    converter = _CONVERTERS.get(name) if value and tag not in _LUT_DESCRIPTOR_TAGS else None
    found = None if converter is None else converter(name, value, context.is_plain)
    key = f"{tag:08X}"
    draft = _Draft()
    if name in BINARY_VRS and value:
        text = binary(name, value, path + key, always=tag in PIXEL_TAGS)
        found = text, value
    if found is None:
        made = _by_pydicom(context, tag, vr, value, path + key, draft)
        text = "" if made is None else f'"{key}":{made}'
    else:
        text = f'"{key}":{found[0]}'
        _take_value(context, tag, found[1], draft)
        if tag == _TRANSFER_SYNTAX_UID and context.kind == "meta":
            if name != "UI" or not found[1]:
                raise UnusualHeader
            draft.values["TransferSyntaxUID"] = found[1]
    if text:
        _describe(context, tag, text[18:20], value, draft)
    return _Entry(tag, text, draft.sealed(), _after(context, tag, vr, value), is_kept='"BulkDataURI"' not in text)


def _take_value(context: _Context, tag: int, value: object, draft: _Draft) -> None:
    """Make columns of the value of an element, or let the sequence around it do so."""
    if context.kind == "top":
        for attribute in _ATTRIBUTES.get(tag, ()):
            _type_value(attribute, value, draft)
    elif context.kind == "item" and tag in _INNER:
        draft.inner[tag] = list(value) if isinstance(value, MultiValue | list) else [value]


def _type_value(attribute: Attribute, value: object, draft: _Draft) -> None:
    try:
        draft.values[attribute.keyword] = typed_value(attribute.kind, value)
    except Exception:  # it does not fit
        _note_value(attribute, draft)


def _note_value(attribute: Attribute, draft: _Draft) -> None:
    if attribute.kind not in PARTS:
        draft.value_notes[attribute.keyword] = f"value_not_{attribute.kind}: {attribute.keyword}"


def _by_pydicom(context: _Context, tag: int, vr: bytes | None, value: bytes, path: str, draft: _Draft) -> str | None:
    """Let pydicom convert an element, in a data set that holds nothing else but what its meaning may depend on."""
    if tag == _TRANSFER_SYNTAX_UID and context.kind == "meta":
        raise UnusualHeader
    dataset, raw = _around(context), _raw(context, tag, vr, value)
    dataset._dict[raw.tag] = raw  # a raw element goes in as it came; `dataset[tag] = raw` would do so after some checks
    with listening() as notes:
        text = element_text(dataset, raw.tag, raw, notes, path, 0)
        if notes.caught:
            raise UnusualHeader
        draft.notes += notes.words()
        if (context.kind == "top" and tag in _ATTRIBUTES) or (context.kind == "item" and tag in _INNER):
            try:
                _take_value(context, tag, dataset[raw.tag].value, draft)
            except Exception:  # pydicom cannot convert it
                if context.kind == "item":
                    raise UnusualHeader from None
                for attribute in _ATTRIBUTES[tag]:
                    _note_value(attribute, draft)
            if notes.caught:
                raise UnusualHeader
    try:
        (text or "").encode("utf-8")
    except UnicodeEncodeError:
        raise UnusualHeader from None
    return text


def _after(context: _Context, tag: int, vr: bytes | None, value: bytes) -> _Context | None:
    """Context behind an element; None when it changes nothing."""
    if context.kind == "meta":
        return None
    group = tag >> 16
    if tag == SPECIFIC_CHARACTER_SET:
        with listening() as notes:
            charset = charset_of({BaseTag(tag): _raw(context, tag, vr, value)}, context.charset, notes)
            if notes.caught or notes.words():
                raise UnusualHeader
        return _context(context.implicit, charset, context.kind, context.pixel_representation)
    if group & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
        written = None if vr is None else _VR_NAMES[vr]
        before = context.creators if context.group == group else ()
        return _context(context.implicit, context.charset, context.kind, context.pixel_representation, group, (*before, (tag, written, value)))
    if tag == _PIXEL_REPRESENTATION and context.implicit:
        known = None if context.kind == "item" else value if len(value) == 2 else _ODD
        return _context(context.implicit, context.charset, context.kind, known)
    return None


# Each of these gives the JSON of a value that is not empty, and the value; None when only pydicom knows. What they let pass is so narrow that
# pydicom's own rules for padding, white space, separators and escapes agree with them.

Converted = tuple[str, object] | None
_PRINTABLE = re.compile(rb"[ !#-\[\]-~]*\0?").fullmatch
# No text fits in two ways: a list that does not fit at its end would be tried in all of them.
_DECIMAL = rb" *[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})? *"
_DECIMALS = re.compile(_DECIMAL + rb"(?:\\" + _DECIMAL + rb")*\0?").fullmatch
_PLAIN = re.compile(rb"[0-9.\\-]+ ?\0?").fullmatch
_INTEGER = rb" *[+-]?[0-9]{1,15} *"
_INTEGERS = re.compile(_INTEGER + rb"(?:\\" + _INTEGER + rb")*\0?").fullmatch


def _string(vr: str, text: str) -> Converted:
    return (f'{{"vr":"{vr}","Value":["{text}"]}}' if text else f'{{"vr":"{vr}"}}'), text


def _code(vr: str, value: bytes, is_plain: bool) -> Converted:
    return _string(vr, value.decode("ascii").rstrip(" \0")) if _PRINTABLE(value) else None


def _uid(vr: str, value: bytes, is_plain: bool) -> Converted:
    return _string(vr, value.decode("ascii").strip(" \0")) if _PRINTABLE(value) else None


def _title(vr: str, value: bytes, is_plain: bool) -> Converted:
    return _string(vr, value.decode("ascii").strip(" ")) if _PRINTABLE(value) and value[-1] else None


def _free_text(vr: str, value: bytes, is_plain: bool) -> Converted:
    return _string(vr, value.decode("ascii").rstrip(" \0")) if is_plain and _PRINTABLE(value) else None


def _name(vr: str, value: bytes, is_plain: bool) -> Converted:
    if not is_plain or b"=" in value or not _PRINTABLE(value):
        return None
    text = value.decode("ascii").rstrip(" \0")
    name = PersonName(text, validation_mode=config.IGNORE)
    return (f'{{"vr":"{vr}","Value":[{{"Alphabetic":"{text}"}}]}}' if text else f'{{"vr":"{vr}"}}'), name


def _values(vr: str, values: list[int] | list[float]) -> Converted:
    text = orjson.dumps(values) if len(values) > _FEW_VALUES and isinstance(values[0], float) else b"e"
    # It writes exponents in another way than Python, and begins with them elsewhere.
    written = ",".join(map(repr, values)) if b"e" in text or b"0.0000" in text else text[1:-1].decode("ascii")
    return f'{{"vr":"{vr}","Value":[{written}]}}', values if len(values) > 1 else values[0]


def _decimals(vr: str, value: bytes, is_plain: bool) -> Converted:
    if len(value) > _MANY_BYTES and _PLAIN(value):
        # A contour: of numbers of these characters JSON takes fewer forms, and integers would not be floats.
        with suppress(orjson.JSONDecodeError):
            numbers = orjson.loads(b"[" + value.rstrip(b" \0").replace(b"\\", b",") + b"]")
            if set(map(type, numbers)) == {float}:
                return _values(vr, numbers)
    if not _DECIMALS(value):
        return None
    values = [float(part) for part in value.rstrip(b" \0").split(b"\\")]
    return _values(vr, values) if all(map(isfinite, values)) else None


def _integers(vr: str, value: bytes, is_plain: bool) -> Converted:
    return _values(vr, [int(part) for part in value.rstrip(b" \0").split(b"\\")]) if _INTEGERS(value) else None


def _numbers(letter: str, size: int, vr: str, value: bytes, is_plain: bool) -> Converted:
    if len(value) % size:
        return None
    values = list(struct.unpack(f"<{len(value) // size}{letter}", value))
    return _values(vr, values) if letter not in "fd" or all(map(isfinite, values)) else None


_CONVERTERS: dict[str, Callable[[str, bytes, bool], Converted]] = {
    **dict.fromkeys(("AS", "CS", "DA", "DT", "TM"), _code),
    **dict.fromkeys(("LO", "LT", "SH", "ST", "UC", "UT"), _free_text),
    "AE": _title,
    "DS": _decimals,
    "IS": _integers,
    "PN": _name,
    "UI": _uid,
    **{
        vr: partial(_numbers, letter, struct.calcsize("<" + letter))
        for vr, letter in {"FD": "d", "FL": "f", "SL": "l", "SS": "h", "SV": "q", "UL": "L", "US": "H", "UV": "Q"}.items()
    },
}
