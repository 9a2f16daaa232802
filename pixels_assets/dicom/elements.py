"""Bytes to pydicom data elements: the structure of a data set, DICOM PS3.5 chapter 7.

Holds the walk over elements, sequences and items. pydicom's own generator reads the elements and, later, converts their values; what pydicom would
lose to an exception (everything before a cut, everything around a deep nesting) is kept here. Must not interpret values or write JSON.
"""

import struct
from collections.abc import Callable, MutableSequence
from io import SEEK_CUR, SEEK_END, BytesIO
from typing import BinaryIO, NamedTuple, cast

from pydicom import Dataset, Sequence
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.filereader import data_element_generator
from pydicom.fileutil import read_undefined_length_value
from pydicom.tag import BaseTag, SequenceDelimiterTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from pixels_assets.dicom.notes import Notes

UNDEFINED_LENGTH = 0xFFFFFFFF
SPECIFIC_CHARACTER_SET = 0x00080005
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

# Sequences within sequences. pydicom itself ends at about 200 with Python's default recursion limit; each level nests JSON by three.
MAX_NESTING = 250
# A part of a file that was never written is zeros. Each eight would be an element, or an item: elements are skipped, so many are no items.
_UNWRITTEN_BYTES = 4096
_MOST_ZEROS = 1024 * 1024

# Python encodings, as pydicom names them.
Charset = str | MutableSequence[str]
Elements = dict[BaseTag, RawDataElement | DataElement]


class Window:
    """A stream up to a known end, so that a length that lies cannot make a read allocate more than there is."""

    def __init__(self, stream: BinaryIO, end: int) -> None:
        self.stream = stream
        self.end = end
        self._at = stream.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, all that are left when negative."""
        left = max(self.end - self._at, 0)
        data = self.stream.read(left if size < 0 or size > left else size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move, as files do; beyond the end is allowed and reads nothing there."""
        base = {SEEK_CUR: self._at, SEEK_END: self.end}.get(whence, 0)
        self._at = max(base + offset, 0)
        if self._at <= self.end:
            self.stream.seek(self._at)
        return self._at

    def tell(self) -> int:
        """Position in the stream."""
        return self._at


class Met(NamedTuple):
    """The header of an element at which reading stopped; the source is at its first byte.

    Lengths and offsets are bytes. `vr` is None where it is not written.
    """

    tag: int
    vr: str | None
    length: int
    offset: int
    value_offset: int


class ElementReader:
    """Reads elements from one source.

    Parameters
    ----------
    source : Window or BytesIO
    little : bool
        Whether numbers are little endian.
    notes : Notes
        Gets what is odd.
    defer_bytes : int or None
        Values longer than this are not loaded: the `RawDataElement` has the value None.
    """

    def __init__(self, source: Window | BytesIO, *, little: bool, notes: Notes, defer_bytes: int | None = None) -> None:
        self.source = source
        self.little = little
        self.notes = notes
        self.defer_bytes = defer_bytes
        self._item_header = struct.Struct("<HHL" if little else ">HHL")

    def read(
        self,
        into: Elements,
        charset: Charset,
        *,
        implicit: bool,
        end: int | None = None,
        stop: Callable[[int], bool] | None = None,
        level: int = 0,
    ) -> Met | None:
        """Read elements from here on.

        Parameters
        ----------
        into : dict
            Gets them; a repeated tag wins over the earlier one, as in pydicom.
        charset : str or list of str
            Python encodings that hold where (0008,0005) *Specific Character Set* is absent.
        implicit : bool
            Whether VRs are not written.
        end : int or None
            Offset at which the data set ends; None: at its delimiter or the end of the source.
        stop : callable or None
            Gets a tag and says whether to stop before it.
        level : int
            Sequences around this data set.

        Returns
        -------
        Met or None
            The element at which `stop` said so; None at the end.
        """
        source = self.source
        met: list[tuple[int, str | None, int]] = []
        last = -1

        def stop_when(tag: BaseTag, vr: str | None, length: int) -> bool:
            # pydicom's generator looks into Specific Character Set, and raises on a damaged one.
            if length == UNDEFINED_LENGTH or tag == SPECIFIC_CHARACTER_SET or not (tag or length) or (stop is not None and stop(tag)):
                met.append((int(tag), vr, length))
                return True
            return False

        while end is None or source.tell() < end:
            met.clear()
            reached = source.tell()
            generator = data_element_generator(cast(BinaryIO, source), implicit, self.little, stop_when, self.defer_bytes)
            try:
                for element in generator:
                    tag, reached = element.tag, source.tell()
                    if tag <= last:
                        self._note_order(tag, into)
                    last = tag
                    into[tag] = element
                    self._note_if_cut(element, reached)
                    if end is not None and reached >= end:
                        return None
            except struct.error:
                # Only the four bytes of a long element's length can be missing here.
                self.notes.add("header_truncated")
                return None
            if not met:
                # pydicom takes a cut within an element's first eight bytes for the end.
                if level == 0 and end is None and source.tell() > reached:
                    self.notes.add("header_truncated")
                return None
            number, vr, length = met[0]
            offset = source.tell()
            header = Met(number, vr, length, offset, offset + (12 if not implicit and vr in EXPLICIT_VR_LENGTH_32 else 8))
            if stop is not None and stop(number):
                return header
            single: RawDataElement | DataElement | None
            if length == UNDEFINED_LENGTH:
                single = self._undefined(header, charset_of(into, charset, self.notes), implicit=implicit, level=level)
            else:
                single = self._defined(header, implicit=implicit)
            if single is None:
                return None
            if single.tag <= last:
                self._note_order(single.tag, into)
            last = single.tag
            into[last] = single
            if not (number or length or vr) and self._skip_zeros(end):
                self.notes.add("element_repeated", last)
        return None

    def sequence(self, charset: Charset, *, implicit: bool, length: int | None, level: int) -> tuple[Sequence, bool]:
        """Read the items of a sequence, DICOM PS3.5 7.5.

        Parameters
        ----------
        charset : str or list of str
            Python encodings of the data set around it.
        implicit : bool
            Whether VRs are not written around it.
        length : int or None
            Bytes of its value; None: up to its delimiter.
        level : int
            Sequences around its items, itself included.

        Returns
        -------
        sequence : pydicom.Sequence
        whole : bool
            False when the bytes ended first; the sequence holds what was there.
        """
        source = self.source
        start = source.tell()
        items: list[Dataset] = []
        whole = True
        while length is None or source.tell() - start < length:
            header = source.read(8)
            if len(header) < 8:
                whole = False
                break
            group, number, size = self._item_header.unpack(header)
            # As in pydicom, whatever is not the delimiter counts as an item.
            if group << 16 | number == SEQUENCE_END:
                break
            if not (group or number or size) and self._is_unwritten():
                whole = False
                break
            item_start = source.tell()
            item_implicit = implicit or not self._vr_ahead()
            elements: Elements = {}
            item_end = None if size == UNDEFINED_LENGTH else item_start + size
            self.read(elements, charset, implicit=item_implicit, end=item_end, level=level)
            items.append(data_set(elements, charset, implicit=item_implicit, little=self.little, notes=self.notes))
        sequence = Sequence(items)
        sequence.is_undefined_length = length is None
        return sequence, whole

    def _skip_zeros(self, end: int | None) -> bool:
        """Move over elements of eight zeros, all alike; tell whether there are any."""
        source = self.source
        start = at = source.tell()
        size = 64
        while True:
            data = source.read(size if end is None else min(size, max(end - at, 0)))
            zeros = len(data) - len(data.lstrip(b"\0"))
            at += zeros - zeros % 8
            if zeros < size:
                source.seek(at)
                return at > start
            size = min(2 * size, _MOST_ZEROS)

    def _is_unwritten(self) -> bool:
        """Whether long zeros follow."""
        start = self.source.tell()
        data = self.source.read(_UNWRITTEN_BYTES)
        self.source.seek(start)
        return len(data) == _UNWRITTEN_BYTES and not data.strip(b"\0")

    def _vr_ahead(self) -> bool:
        """Whether the next element's header holds two capitals where an explicit VR would be."""
        start = self.source.tell()
        head = self.source.read(6)
        self.source.seek(start)
        # With nothing there to tell, what holds around it holds here: explicit, or this would not have been asked.
        return len(head) < 6 or (0x40 < head[4] < 0x5B and 0x40 < head[5] < 0x5B)

    def _defined(self, met: Met, *, implicit: bool) -> RawDataElement:
        """Read an element of defined length."""
        self.source.seek(met.value_offset)
        value = self.source.read(met.length) if met.length else empty_value_for_VR(met.vr, raw=True)
        raw = RawDataElement(BaseTag(met.tag), met.vr, met.length, cast(bytes | None, value), met.value_offset, implicit, self.little)
        self._note_if_cut(raw, self.source.tell())
        return raw

    def _undefined(self, met: Met, charset: Charset, *, implicit: bool, level: int) -> RawDataElement | DataElement | None:
        """Read an element of undefined length; None when the source ended before it did."""
        source, tag = self.source, BaseTag(met.tag)
        source.seek(met.value_offset)
        if self._sequence_vr(met):
            if level >= MAX_NESTING:
                self.notes.add("nesting_too_deep", met.tag)
                self._skip_sequence(implicit=implicit)
                size = source.tell() - met.value_offset
                source.seek(met.value_offset)
                return unparsed(met.tag, source.read(size))
            sequence, whole = self.sequence(charset, implicit=implicit, length=None, level=level + 1)
            if not whole:
                self.notes.add("sequence_truncated", met.tag)
            return DataElement(tag, "SQ", sequence, met.value_offset, is_undefined_length=True)
        try:
            value = read_undefined_length_value(cast(BinaryIO, source), self.little, SequenceDelimiterTag, self.defer_bytes)
        except EOFError:
            self.notes.add("element_truncated", met.tag)
            return None
        return RawDataElement(tag, met.vr, UNDEFINED_LENGTH, value, met.value_offset, implicit, self.little)

    def _sequence_vr(self, met: Met) -> bool:
        """Whether an element of undefined length is a sequence; the source is at its value."""
        # DICOM PS3.5 6.2.2: UN of undefined length is a sequence.
        if met.vr in {"SQ", "UN"}:
            return True
        if met.vr is not None:
            return False
        try:
            return dictionary_VR(met.tag) == "SQ"
        except KeyError:
            head = self.source.read(4)
            self.source.seek(met.value_offset)
            return head == self._item_header.pack(ITEM >> 16, ITEM & 0xFFFF, 0)[:4]

    def _skip_sequence(self, *, implicit: bool) -> None:
        """Move behind the delimiter of a sequence of undefined length, however deep, without recursion."""
        source = self.source
        # One entry per open sequence (None) or open item (whether it is implicit).
        opened: list[bool | None] = [None]
        while opened:
            head = source.read(8)
            if len(head) < 8:
                return
            group, number, length = self._item_header.unpack(head)
            tag = group << 16 | number
            if opened[-1] is None:
                if tag == SEQUENCE_END:
                    opened.pop()
                elif length == UNDEFINED_LENGTH:
                    around = opened[-2] if len(opened) > 1 else implicit
                    opened.append(bool(around) or not self._vr_ahead())
                else:
                    source.seek(length, SEEK_CUR)
            elif tag == ITEM_END:
                opened.pop()
            else:
                if not opened[-1] and b"AA" <= head[4:6] <= b"ZZ":
                    if head[4:6].decode("ascii", "replace") in EXPLICIT_VR_LENGTH_32:
                        length = int.from_bytes(source.read(4), "little" if self.little else "big")
                    else:
                        length = int.from_bytes(head[6:8], "little" if self.little else "big")
                if length == UNDEFINED_LENGTH:
                    # Encapsulated fragments look like items of defined length.
                    opened.append(None)
                else:
                    source.seek(length, SEEK_CUR)

    def _note_order(self, tag: BaseTag, before: Elements) -> None:
        """DICOM PS3.5 7.1: a tag occurs once, in ascending order."""
        if tag in before:
            self.notes.add("element_repeated", tag)
        else:
            self.notes.add("elements_out_of_order")

    def _note_if_cut(self, element: RawDataElement | DataElement, reached: int) -> None:
        if not isinstance(element, RawDataElement):
            return
        # A value that was not loaded was skipped by its length, be that beyond the end.
        cut = isinstance(self.source, Window) and reached > self.source.end if element.value is None else len(element.value) < element.length
        if cut:
            self.notes.add("element_truncated", element.tag)


def data_set(elements: Elements, charset: Charset, *, implicit: bool, little: bool, notes: Notes) -> Dataset:
    """Make a pydicom data set of elements as they were read; `charset` is that of the data set around it."""
    result = Dataset(elements, parent_encoding=charset)
    result.set_original_encoding(implicit, little, charset_of(elements, charset, notes))
    return result


def charset_of(elements: Elements, charset: Charset, notes: Notes) -> Charset:
    """Python encodings of a data set, as pydicom derives them from (0008,0005) *Specific Character Set*."""
    raw = elements.get(BaseTag(SPECIFIC_CHARACTER_SET))
    if raw is None:
        return charset
    try:
        value = convert_raw_data_element(raw).value if isinstance(raw, RawDataElement) else raw.value
        return convert_encodings(value)
    except Exception:  # any damage to this one element must not cost the others
        notes.add("charset_unknown")
        return default_encoding


def expand(raw: RawDataElement, charset: Charset, *, level: int, notes: Notes) -> DataElement | None:
    """Parse the value of a sequence of defined length.

    Parameters
    ----------
    raw : RawDataElement
        Its value is loaded.
    charset : str or list of str
        Python encodings of the data set around it.
    level : int
        Sequences around it.
    notes : Notes

    Returns
    -------
    DataElement or None
        None when the value does not begin with an item and does not parse, or is nested too deep.
    """
    value = raw.value or b""
    if level >= MAX_NESTING:
        notes.add("nesting_too_deep", raw.tag)
        return None
    reader = ElementReader(BytesIO(value), little=raw.is_little_endian, notes=notes)
    sequence, whole = reader.sequence(charset, implicit=raw.is_implicit_VR, length=len(value), level=level + 1)
    if not whole:
        notes.add("sequence_truncated", raw.tag)
        if value[:4] != (b"\xfe\xff\x00\xe0" if raw.is_little_endian else b"\xff\xfe\xe0\x00"):
            return None
    return DataElement(raw.tag, "SQ", sequence, raw.value_tell, raw.length == UNDEFINED_LENGTH, already_converted=True)


def unparsed(tag: int, value: bytes) -> DataElement:
    """Make an element that keeps bytes as they are, VR UN, whatever the dictionary says of its tag."""
    element = DataElement(BaseTag(tag), "OB", value, already_converted=True)
    element.VR = "UN"
    return element
