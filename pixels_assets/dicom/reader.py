"""The header of one DICOM object: bytes to JSON, typed values and what the thumbnail needs.

Holds the way from a stream to a `Header`, or to the reason why there is none. pydicom does the parsing and defines what is right; well-formed
headers take a shortcut (`fast`) that gives the same and makes no objects. Must not read pixel data, open files or know where the bytes came from.
"""

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import BinaryIO, cast

from pydicom import Dataset
from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import BaseTag

from pixels_assets.dicom.attributes import ATTRIBUTES
from pixels_assets.dicom.elements import UNDEFINED_LENGTH, ElementReader, Elements, Met, Window, charset_of, data_set
from pixels_assets.dicom.fast import HeaderParser, TooShort, UnusualHeader, forget
from pixels_assets.dicom.json_model import BINARY_VRS, PIXEL_TAGS, vr_of, write_json
from pixels_assets.dicom.notes import Notes, listening
from pixels_assets.dicom.transfer_syntax import (
    DEFLATED,
    GE_IMPLICIT_BIG,
    NAMES,
    Encoding,
    declared_encoding,
    find_encoding,
    real_transfer_syntax,
    sniff_codec,
)
from pixels_assets.dicom.values import PARTS, gathered, typed_value, values_within

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16 * 1024 * 1024
# Up to this many inflated bytes no ratio is held against a deflated data set.
RATIO_FLOOR_BYTES = 16 * 1024 * 1024
# Binary values above this stay in the file; they are references in the JSON anyway.
DEFER_BYTES = 1024 * 1024
_CHUNK = 1024 * 1024
# Nearly all headers fit into the first read; else eight times as much is read, and so on; above 16 MiB twice as much.
_FIRST_READ_BYTES = 64 * 1024
# The fast reader leaves headers above this to pydicom, which does not read long binary values.
_MOST_READ_BYTES = 1024 * 1024 * 1024
# Behind the pixel data there are at most signatures and padding.
_REST_BYTES = 1024 * 1024
_SNIFFED_BYTES = 4096
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_TRANSFER_SYNTAX_UID = 0x00020010


@dataclass(slots=True)
class Header:
    """What one DICOM object says of itself.

    Parameters
    ----------
    meta : str
        Its data set in the DICOM JSON model, DICOM PS3.18 Annex F: valid JSON, keys in ascending order.
    file_meta : str or None
        The same of group 0002; None when there is none.
    header : bytes or None
        The object's own bytes from 0 up to its pixel data element, all when it has none; None above 16 MiB. A deflated object's are all of its bytes.
    values : dict of str to object
        Typed value of each of `ATTRIBUTES`, by keyword; None when absent or not fitting its type.
    warnings : list of str
        What was odd, in short stable words without patient data.
    transfer_syntax : str or None
        UID of the transfer syntax that it is really encoded in, None when nothing tells.
    stream : BinaryIO
        The stream that holds the pixel data: the given one, or the inflated data set.
    pixel_offset : int or None
        Offset in `stream`, bytes, at which the pixel data element begins with its tag; None without one.
    stream_length : int
        Bytes of `stream`.
    """

    meta: str
    file_meta: str | None
    header: bytes | None
    values: dict[str, object]
    warnings: list[str]
    transfer_syntax: str | None
    stream: BinaryIO
    pixel_offset: int | None
    stream_length: int
    _parser: HeaderParser | None = field(default=None, repr=False, compare=False)
    _dataset: Dataset | None = field(default=None, repr=False, compare=False)

    @property
    def described(self) -> Mapping[int, tuple[str, bytes]] | None:
        """What describes the pixel data, without any pydicom object; None when pydicom had to read the header: then only `dataset` tells.

        By tag, VR and value of the outermost elements of group 0028, and of SOP Class UID, the pixel spacings, (0062,000E), (2050,0020), the
        functional groups and the extended offset table. VRs are those in `meta`: decided, also where they are not written. Values are little endian
        and as they stand in the file, padding included: a palette whole, a sequence as the bytes of its items, with its delimiter where it has one.
        An element that is absent from the object is absent here.
        """
        return None if self._parser is None else self._parser.described()

    @property
    def dataset(self) -> Dataset:
        """Its elements without pixel data, as pydicom objects; made when first asked for, from `stream`, which must still be open."""
        if self._dataset is None:
            with listening() as notes:
                again = _read(self.stream, self.stream_length, 0, notes, 0, 0)
            self._dataset = again._dataset if isinstance(again, Header) else Dataset()
        assert self._dataset is not None
        return self._dataset


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why there is no header.

    Parameters
    ----------
    code : str
        Stable snake_case word.
    message : str
        One sentence without patient data.
    status : str
        ``corrupt`` or ``limit_exceeded``.
    """

    code: str
    message: str
    status: str


def read_header(
    stream: BinaryIO,
    length: int,
    *,
    dataset_offset: int = 0,
    flags: Sequence[str] = (),
    max_deflated_bytes: int,
    max_ratio: float = 200.0,
) -> Header | Unreadable:
    """Read everything but the pixel data of one DICOM object.

    Parameters
    ----------
    stream : BinaryIO
        Seekable; its bytes were recognised as DICOM.
    length : int
        Bytes of the stream.
    dataset_offset : int
        Where the preamble starts, or the file meta information or data set of an object without preamble; bytes.
    flags : sequence of str
        Warnings of that recognition; they are repeated in the header's.
    max_deflated_bytes : int
        Most bytes that a deflated data set may expand to.
    max_ratio : float
        Most expanded bytes per deflated byte, once more than 16 MiB were expanded.

    Returns
    -------
    Header or Unreadable
        Never an exception because of the bytes. The position of the stream is undefined afterwards.
    """
    header = _read_fast(stream, length, flags) if not dataset_offset else None
    if header is not None:
        return header
    return read_by_pydicom(stream, length, dataset_offset, flags, max_deflated_bytes, max_ratio)


def read_by_pydicom(
    stream: BinaryIO, length: int, dataset_offset: int, flags: Sequence[str], max_deflated_bytes: int, max_ratio: float
) -> Header | Unreadable:
    """Read a header without the shortcut: what it gives defines what `read_header`, which has the same parameters, gives."""
    with listening() as notes:
        try:
            for flag in flags:
                notes.add(flag)
            return _read(stream, length, dataset_offset, notes, max_deflated_bytes, max_ratio)
        except RecursionError:
            return Unreadable("nesting_too_deep", "The sequences of the header are nested too deep to be read.", "corrupt")
        except MemoryError:
            return Unreadable("out_of_memory", "The header needs more memory than there is.", "limit_exceeded")
        except Exception as error:  # third-party parsing of hostile bytes: whatever it raises is this object's failure, not the run's
            logger.debug("reading a header raised %s", type(error).__name__)
            return Unreadable("header_unreadable", f"Reading the header raised {type(error).__name__}.", "corrupt")


def _read_fast(stream: BinaryIO, length: int, flags: Sequence[str]) -> Header | None:
    """Read a well-formed header by the shortcut; None for all others."""
    try:
        if type(stream) is BytesIO:
            data = stream.getvalue()  # not copied
            if len(data) != length:
                return None
            parser = HeaderParser(data, length)
        else:
            parser, data = _parse_head(stream, length)
        pixels = parser.pixels
        offset = length if pixels is None else pixels.offset
        encapsulated = codec = None
        if pixels is not None:
            encapsulated = pixels.length == UNDEFINED_LENGTH
            source = data if len(data) == length else stream
            sniffed, stop = pixels.value_offset, pixels.value_offset + pixels.length
            if encapsulated:
                sniffed, stop = _past_fragments(source, sniffed)
            codec = sniff_codec(_bytes_at(source, sniffed, min(_SNIFFED_BYTES, max(0, length - sniffed))))
            if stop < length and length - stop <= _REST_BYTES:
                if source is data:
                    parser.rest(data, stop)
                else:
                    parser.rest(_bytes_at(source, stop, length - stop), 0)
            elif stop != length:
                return None
    except UnusualHeader:
        return None
    except Exception as error:  # the boundary to hostile bytes: what this reader did not think of, the other one decides
        logger.debug("the fast reader raised %s", type(error).__name__)
        return None
    kept = data[:offset] if offset <= MAX_HEADER_BYTES else None
    # Before its JSON is joined: a structure set of 100 MB would be held three times.
    parser.release()
    data = source = b""
    if kept is None:
        forget()  # what so long a header left there is of no use to the next one
    values, element_notes, value_notes = parser.effect()
    really, words = _judge_transfer_syntax(parser.declared, parser.encoding, encapsulated, codec)
    values["TransferSyntaxUID"] = parser.declared
    warnings: list[str] = []
    if flags or element_notes or words or value_notes or kept is None:
        notes = Notes([])
        for word in (
            *flags,
            *element_notes,
            *words,
            *(value_notes[attribute.keyword] for attribute in ATTRIBUTES if attribute.keyword in value_notes),
            *(() if kept is not None else ("header_too_large",)),
        ):
            notes.add(word)
        warnings = notes.words()
    return Header(
        meta=_joined(parser.meta),
        file_meta=_joined(parser.file_meta),
        header=kept,
        values=values,
        warnings=warnings,
        transfer_syntax=really,
        stream=stream,
        pixel_offset=None if pixels is None else offset,
        stream_length=length,
        _parser=parser,
    )


def _joined(pieces: list[str]) -> str:
    """Join the pieces of a JSON object, which are gone then."""
    if not pieces:
        return "{}"
    pieces[0] = "{" + pieces[0]
    pieces[-1] += "}"
    text = ",".join(pieces)
    pieces.clear()
    return text


def _parse_head(stream: BinaryIO, length: int) -> tuple[HeaderParser, bytes]:
    """Parse the header of a file, of which not much more is read than that."""
    size = _FIRST_READ_BYTES
    while True:
        data = _bytes_at(stream, 0, min(size, length))
        try:
            return HeaderParser(data, length), data
        except TooShort as short:
            least = short.least
        del data  # before more is read
        size = max(size * (8 if size < MAX_HEADER_BYTES else 2), least)
        if min(size, length) > _MOST_READ_BYTES:
            raise UnusualHeader


def _bytes_at(source: bytes | BinaryIO, start: int, size: int) -> bytes:
    if isinstance(source, bytes):
        return source[start : start + size]
    source.seek(start)
    data = source.read(size)
    if len(data) != size:
        raise UnusualHeader
    return data


def _past_fragments(source: bytes | BinaryIO, start: int) -> tuple[int, int]:
    """Give where the first fragment begins, behind the offset table, and the end of encapsulated pixel data, DICOM PS3.5 A.4."""
    position, first = start, 0
    while (head := _bytes_at(source, position, 8))[:4] == _ITEM:
        position += 8 + int.from_bytes(head[4:], "little")
        first = first or position + 8
    if head[:4] != _SEQUENCE_END or not first:
        raise UnusualHeader
    return first, position + 8


def _read(stream: BinaryIO, length: int, offset: int, notes: Notes, max_deflated_bytes: int, max_ratio: float) -> Header | Unreadable:
    window = Window(stream, length)
    preamble, start = _preamble(window, offset, notes)
    file_meta, command, start = _groups_before(window, start, notes)
    file_meta_json = write_json(file_meta, notes) if file_meta else None
    if not file_meta:
        notes.add("no_file_meta")
    declared = _declared_transfer_syntax(file_meta)

    content: BinaryIO = stream
    if declared in DEFLATED:
        inflated = _inflate(window, start, notes, max_deflated_bytes, max_ratio)
        if isinstance(inflated, Unreadable):
            return inflated
        content, length, start = BytesIO(inflated), len(inflated), 0
        window = Window(content, length)

    encoding = find_encoding(window, start, declared_encoding(declared))
    elements: Elements = {}
    pixels = _read_data_set(window, start, encoding, elements, notes)
    elements.update(command)
    # Behind file meta information anything is a data set, private elements alone too; without it, text would pass for one.
    if not (elements if file_meta else any(tag > 0x0002FFFF and dictionary_has_tag(tag) for tag in elements)):
        return Unreadable("no_elements", "No data element could be read behind the file meta information or preamble.", "corrupt")

    dataset = FileDataset(cast(BinaryIO, window), elements, preamble, file_meta, encoding.implicit, encoding.little)
    dataset.set_original_encoding(encoding.implicit, encoding.little, charset_of(elements, default_encoding, notes))
    references = {met.tag: _pixel_vr(met, dataset, encoding) for met in pixels if met.length}
    for met in pixels:
        if not met.length:
            dataset[BaseTag(met.tag)] = DataElement(BaseTag(met.tag), _pixel_vr(met, dataset, encoding), None)
    meta = write_json(dataset, notes, references)
    really = _real_transfer_syntax(declared, encoding, pixels, window, notes)
    values = _values(dataset, declared or really, notes)
    notes.collect()
    first = pixels[0].offset if pixels else None
    return Header(
        meta=meta,
        file_meta=file_meta_json,
        header=_header_bytes(stream, window, first, notes),
        values=values,
        warnings=notes.words(),
        transfer_syntax=really,
        stream=content,
        pixel_offset=first,
        stream_length=length,
        _dataset=dataset,
    )


def _preamble(window: Window, offset: int, notes: Notes) -> tuple[bytes | None, int]:
    """Find the preamble, DICOM PS3.10 7.1; give it and the offset of what follows."""
    window.seek(offset)
    head = window.read(132)
    if head[128:] == b"DICM":
        if offset:
            notes.add(f"dicom_at_offset_{offset}")
        return head[:128], offset + 132
    if head.startswith(b"DICM"):
        notes.add("no_preamble")
        notes.add("dicm_at_zero")
        return None, offset + 4
    notes.add("no_preamble")
    return None, offset


def _groups_before(window: Window, start: int, notes: Notes) -> tuple[FileMetaDataset, Elements, int]:
    """Read group 0002, always explicit little endian (DICOM PS3.10 7.1), and a command set, always implicit little endian (PS3.7 6.3)."""
    groups: list[Elements] = []
    encodings = []
    for group, implicit in ((0x0002, False), (0x0000, True)):
        window.seek(start)
        head = window.read(6)
        elements: Elements = {}
        # Some writers mix the two up: two capitals where the VR would be tell.
        implicit = not (0x40 < head[4] < 0x5B and 0x40 < head[5] < 0x5B) if len(head) == 6 else implicit
        if head[:2] == group.to_bytes(2, "little"):
            window.seek(start)
            reader = ElementReader(window, little=True, notes=notes, defer_bytes=DEFER_BYTES)
            reader.read(elements, default_encoding, implicit=implicit, stop=lambda tag, group=group: tag >> 16 != group)  # type: ignore[misc]
            start = window.tell()
            _load_deferred(window, elements)
        groups.append(elements)
        encodings.append(implicit)
    file_meta = FileMetaDataset(data_set(groups[0], default_encoding, implicit=encodings[0], little=True, notes=notes))
    file_meta.set_original_encoding(encodings[0], True, default_encoding)
    return file_meta, groups[1], start


def _declared_transfer_syntax(file_meta: Dataset) -> str | None:
    if _TRANSFER_SYNTAX_UID not in file_meta:
        return None
    try:
        value = file_meta[_TRANSFER_SYNTAX_UID].value
    except Exception:  # a damaged element; it was noted when the file meta information was written as JSON
        return None
    return str(value) if isinstance(value, str) and value else None


def _inflate(window: Window, start: int, notes: Notes, max_bytes: int, max_ratio: float) -> bytes | Unreadable:
    """Inflate the data set of a deflated transfer syntax, DICOM PS3.5 A.5, within limits."""
    window.seek(start)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    result = bytearray()
    read = 0
    # Small pieces: each expands to a bounded size, and what a call inflated before it found damage is lost.
    while not inflater.eof and (piece := window.read(1024)):
        read += len(piece)
        try:
            result += inflater.decompress(piece)
        except zlib.error:
            if not result:
                return Unreadable("deflate_corrupt", "The deflated data set cannot be inflated.", "corrupt")
            notes.add("deflate_corrupt")
            return bytes(result)
        if len(result) > max_bytes or (len(result) > RATIO_FLOOR_BYTES and len(result) > max_ratio * read):
            return Unreadable("deflated_too_large", "The deflated data set expands beyond the limits.", "limit_exceeded")
    if not inflater.eof:
        notes.add("deflate_truncated")
    return bytes(result)


def _read_data_set(window: Window, start: int, encoding: Encoding, elements: Elements, notes: Notes) -> list[Met]:
    """Read the data set's elements, also those behind the pixel data, and give the pixel data elements, which are not read."""
    reader = ElementReader(window, little=encoding.little, notes=notes, defer_bytes=DEFER_BYTES)
    pixels: list[Met] = []
    window.seek(start)
    while (met := reader.read(elements, default_encoding, implicit=encoding.implicit, stop=PIXEL_TAGS.__contains__)) is not None:
        pixels.append(met)
        if met.length == UNDEFINED_LENGTH:
            window.seek(met.value_offset)
            whole = _skip_fragments(window, little=encoding.little)
        else:
            window.seek(met.value_offset + met.length)
            whole = window.tell() <= window.end
        if not whole:
            notes.add("pixel_data_truncated")
            break
    _load_deferred(window, elements)
    return pixels


def _skip_fragments(window: Window, *, little: bool) -> bool:
    """Move behind encapsulated pixel data, DICOM PS3.5 A.4; False when they have no end."""
    start = window.tell()
    item, end = (b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0") if little else (b"\xff\xfe\xe0\x00", b"\xff\xfe\xe0\xdd")
    while len(head := window.read(8)) == 8:
        if head[:4] == end:
            return True
        if head[:4] != item:
            break
        window.seek(window.tell() + int.from_bytes(head[4:], "little" if little else "big"))
    # Not fragments, or their lengths lie: look for the delimiter, as pydicom does.
    window.seek(start)
    tail = b""
    while piece := window.read(_CHUNK):
        found = (tail + piece).find(end)
        if found >= 0:
            window.seek(window.tell() - len(piece) - len(tail) + found + 8)
            return True
        tail = (tail + piece)[-3:]
    return False


def _load_deferred(window: Window, elements: Elements) -> None:
    """Load the values that were left in the file for their length alone: they are not binary, or the length was a lie."""
    around = Dataset(elements)
    at = window.tell()
    for tag, raw in list(elements.items()):
        if isinstance(raw, RawDataElement) and raw.value is None and raw.length:
            try:
                binary = vr_of(raw, around) in BINARY_VRS
            except Exception:  # a private creator that pydicom cannot convert
                binary = False
            if not binary or window.end - raw.value_tell <= DEFER_BYTES:
                window.seek(raw.value_tell)
                elements[tag] = raw._replace(value=window.read(raw.length))
    window.seek(at)


def _pixel_vr(met: Met, dataset: Dataset, encoding: Encoding) -> str:
    """VR of a pixel data element, DICOM PS3.5 A.1 to A.4, as pydicom decides it."""
    if met.vr is not None and met.vr != "UN":
        return met.vr
    if met.tag != 0x7FE00010:
        return dictionary_VR(met.tag)
    if met.length == UNDEFINED_LENGTH:
        return "OB"
    if encoding.implicit:
        return "OW"
    try:
        allocated = dataset.get("BitsAllocated")
    except Exception:  # a damaged element; it is noted in its turn
        allocated = None
    return "OW" if isinstance(allocated, int) and allocated > 8 else "OB"


def _real_transfer_syntax(declared: str | None, encoding: Encoding, pixels: list[Met], window: Window, notes: Notes) -> str | None:
    encapsulated = codec = None
    if pixels:
        met = pixels[0]
        encapsulated = met.length == UNDEFINED_LENGTH
        window.seek(met.value_offset)
        if encapsulated:
            # The first item is the basic offset table, the second the first fragment.
            table = window.read(8)
            window.seek(window.tell() + int.from_bytes(table[4:], "little") + 8)
        codec = sniff_codec(window.read(_SNIFFED_BYTES))
    really, words = _judge_transfer_syntax(declared, encoding, encapsulated, codec)
    for word in words:
        notes.add(word)
    return really


@lru_cache(maxsize=256)
def _judge_transfer_syntax(
    declared: str | None, encoding: Encoding, encapsulated: bool | None, codec: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Transfer syntax in which an object is really encoded, and what is odd about the declared one."""
    really = real_transfer_syntax(declared, encoding, encapsulated=encapsulated, codec=codec)
    words = []
    found = NAMES[encoding]
    expected = declared_encoding(declared)
    if expected is not None and declared != really:
        words.append(f"transfer_syntax_wrong: really {'encapsulated' if encapsulated else found}")
    elif expected is not None and expected != encoding and declared != GE_IMPLICIT_BIG:
        words.append(f"transfer_syntax_wrong: really {found}")
    if declared is not None and not declared.startswith("1.2.840.10008.") and declared != GE_IMPLICIT_BIG:
        words.append("transfer_syntax_unknown")
    return really, tuple(words)


def _values(dataset: Dataset, transfer_syntax: str | None, notes: Notes) -> dict[str, object]:
    """Typed values of all attributes."""
    values: dict[str, object] = {}
    for attribute in ATTRIBUTES:
        values[attribute.keyword] = None
        try:
            if attribute.tag == _TRANSFER_SYNTAX_UID:
                values[attribute.keyword] = transfer_syntax
            elif attribute.kind == "gathered":
                values[attribute.keyword] = gathered(dataset, attribute.tag)
            elif attribute.sequence is not None:
                values[attribute.keyword] = typed_value(attribute.kind, values_within(dataset, attribute.sequence, attribute.tag))
            elif attribute.tag in dataset:
                values[attribute.keyword] = typed_value(attribute.kind, dataset[attribute.tag].value)
        except Exception:  # it does not fit, or pydicom cannot convert it: then `meta` keeps its bytes
            if attribute.kind not in PARTS:
                notes.add(f"value_not_{attribute.kind}: {attribute.keyword}")
    return values


def _header_bytes(stream: BinaryIO, window: Window, pixel_offset: int | None, notes: Notes) -> bytes | None:
    """Bytes of the file up to its pixel data; all of them when there are none or the file is deflated."""
    if window.stream is not stream:
        stream.seek(0)
        data = stream.read(MAX_HEADER_BYTES + 1)
        size = len(data)
    else:
        size = window.end if pixel_offset is None else pixel_offset
        stream.seek(0)
        data = stream.read(size) if size <= MAX_HEADER_BYTES else b""
    if size > MAX_HEADER_BYTES:
        notes.add("header_too_large")
        return None
    return data
