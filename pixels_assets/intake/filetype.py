r"""What a byte stream is, by its content and never by its name.

Holds the recognition of DICOM, archives and compressed streams, and the short word for anything else. Must not parse beyond what tells one type
from another, open archives, or know paths.

DICOM is taken for what it is when

* ``DICM`` stands at byte 128 and a data element follows (PS3.10 7.1), whatever the preamble holds: a TIFF, PDF or program header may share it;
* ``DICM`` and a data element stand at byte 0: the preamble is missing;
* file meta information or a data set stands at byte 0, and its first elements name a plausible SOP class and SOP instance, or file meta information
  names a transfer syntax of the standard: preamble, ``DICM`` and perhaps file meta information are missing;
* nothing else is recognised and preamble, ``DICM`` and the file meta information's first element stand within the first 4 KiB: a foreign header
  was put before the file. Further in it would more likely be one of several files in a container.

Each but the first is flagged.
"""

import codecs
import json
import logging
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, Literal
from zlib import crc32

logger = logging.getLogger(__name__)

_HEAD = 4096  # enough to tell nearly every type
_DATA_SET_HEAD = 65_536  # what a data set without file meta information is searched for its UIDs
_TAIL = 22 + 65_535  # a ZIP's end-of-central-directory record with the longest comment, which holds all other trailers
# Programs write an empty archive as two blocks of zeros or one record of 20; any other file of zeros is rather one whose content got lost.
_EMPTY_TARS = frozenset({1024, 10_240})

DICOM_TYPES = frozenset({"dicom", "dicomdir"})
ARCHIVE_TYPES = frozenset({"zip", "tar"})
COMPRESSED_TYPES = frozenset({"gzip", "bzip2", "xz"})


@dataclass(frozen=True, slots=True)
class FileType:
    """What a byte stream is.

    Parameters
    ----------
    name : str
        Lower-case word: ``dicom``, ``dicomdir``, ``zip``, ``tar``, ``gzip``, ``bzip2``, ``xz``, or what it is otherwise, such as ``pdf`` or
        ``text``; ``empty`` for no bytes, ``zeros`` for nothing but NUL at both ends, ``unknown``.
    dataset_offset : int or None
        For DICOM, where to start reading: at a preamble, or without one (flag ``no_preamble``) at the first data element.
    flags : tuple of str
        What is odd, for the row's warnings: ``no_preamble``, ``no_file_meta``, ``dicm_at_zero``, ``dicom_at_offset_<n>``,
        ``executable_preamble``, ``pdf_preamble``.
    """

    name: str
    dataset_offset: int | None = None
    flags: tuple[str, ...] = ()


def identify(stream: BinaryIO, length: int) -> FileType:
    """Say what a byte stream is.

    Reads the first 4 KiB; only where these leave it open, also up to 64 KiB at each end.

    Parameters
    ----------
    stream : BinaryIO
        Seekable. Is left at position 0.
    length : int
        Bytes that the stream is said to hold. It may hold fewer.

    Raises
    ------
    OSError
        The stream cannot be read.
    """
    stream.seek(0)
    try:
        return _identify(stream, length)
    finally:
        stream.seek(0)


def _identify(stream: BinaryIO, length: int) -> FileType:
    head = _read(stream, 0, _HEAD)
    if not head:
        return FileType("empty")
    found = _part_10(head) or _archive(head) or _without_preamble(stream, head)
    if found is not None:
        return found
    if _is_tar(head):
        return FileType("tar")
    name = _by_signature(head)
    if name is not None:
        return FileType(name)
    tail_start = max(0, length - _TAIL)
    tail = head if length <= len(head) else _read(stream, tail_start, _TAIL)
    if _ends_as_zip(stream, tail, tail_start):
        return FileType("zip")
    if length > _ISO_9660 and _read(stream, _ISO_9660, 5) == b"CD001":
        return FileType("iso")
    if not head.strip(b"\0") and not tail.strip(b"\0"):
        return FileType("tar" if length in _EMPTY_TARS else "zeros")
    name = _text(head, is_whole=length <= len(head)) or _program(head) or _by_library(head)
    if name is not None:
        return FileType(name)
    return _behind_foreign_header(head) or FileType("unknown")


def _read(stream: BinaryIO, start: int, count: int) -> bytes:
    stream.seek(start)
    data = stream.read(count)
    while len(data) < count:  # an unbuffered stream may return less than it has
        more = stream.read(count - len(data))
        if not more:
            break
        data += more
    return data


# ---------------------------------------------------------------------------------------------------------------------------------- DICOM

_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_MEDIA_STORAGE_CLASS, _MEDIA_STORAGE_INSTANCE, _TRANSFER_SYNTAX = 0x00020002, 0x00020003, 0x00020010
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_UIDS = frozenset({_MEDIA_STORAGE_CLASS, _MEDIA_STORAGE_INSTANCE, _TRANSFER_SYNTAX, _SOP_CLASS, _SOP_INSTANCE})
_DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_STANDARD = "1.2.840.10008.1.2"  # root of the transfer syntaxes
# PS3.5 9.1, but with leading zeros, which many writers put into components.
_UID = re.compile(r"[0-9]+(?:\.[0-9]+){2,}")
# Nothing before the SOP UIDs has a higher group.
_FIRST_GROUPS = frozenset({0x00, 0x02, 0x04, 0x06, 0x08})


def _part_10(head: bytes) -> FileType | None:
    """Preamble and ``DICM``."""
    if head[128:132] != b"DICM":
        return None
    flags: tuple[str, ...] = ()
    if head.startswith((b"MZ", b"\x7fELF", b"#!")):
        flags = ("executable_preamble",)
    elif head.startswith(b"%PDF"):
        flags = ("pdf_preamble",)
    # The first element of the file meta information, of 12 bytes, may be damaged.
    if b"\x02\x00" in (head[132:134], head[144:146]):
        return FileType(_dicom_name(head, 132), 0, flags)
    is_cut_off = len(head) < 140 and b"\0" in head[:128]
    if is_cut_off or _is_data_set(head, 132):
        return FileType(_dicom_name(head, 132), 0, (*flags, "no_file_meta"))
    return None


def _without_preamble(stream: BinaryIO, head: bytes) -> FileType | None:
    """``DICM``, file meta information or a data set at byte 0."""
    if head.startswith(b"DICM"):
        if head[4:6] == b"\x02\x00":
            return FileType(_dicom_name(head, 4), 4, ("no_preamble", "dicm_at_zero"))
        if _is_data_set(head, 4):
            return FileType(_dicom_name(head, 4), 4, ("no_preamble", "dicm_at_zero", "no_file_meta"))
        return None
    if _byte_order(head, 0) is None:
        return None
    uids = _uids(head, 0)
    if not _names_an_instance(uids) and len(head) == _HEAD:
        uids = _uids(_read(stream, 0, _DATA_SET_HEAD), 0)
    if not _names_an_instance(uids):
        return None
    has_meta = any(tag >> 16 == 0x0002 for tag in uids)
    return FileType(_dicom_name(head, 0), 0, ("no_preamble",) if has_meta else ("no_preamble", "no_file_meta"))


def _behind_foreign_header(head: bytes) -> FileType | None:
    start = head.find(b"DICM\x02\x00\x00\x00UL\x04\x00", 129)
    if start < 0:
        return None
    return FileType(_dicom_name(head, start + 4), start - 128, (f"dicom_at_offset_{start - 128}",))


def _dicom_name(head: bytes, start: int) -> str:
    if _DICOMDIR_CLASS.encode() in head:  # a quick look first: nearly no file is one
        uids = _uids(head, start)
        if _DICOMDIR_CLASS in (uids.get(_MEDIA_STORAGE_CLASS), uids.get(_SOP_CLASS)):
            return "dicomdir"
    # A directory without file meta information begins with the File-set Identification module.
    return "dicomdir" if head[start : start + 2] == b"\x04\x00" else "dicom"


def _names_an_instance(uids: dict[int, str]) -> bool:
    if _is_uid(uids.get(_TRANSFER_SYNTAX, "")) and uids[_TRANSFER_SYNTAX].startswith(_STANDARD):
        return True
    sop_class, sop_instance = (
        any(_is_uid(uids.get(tag, "")) for tag in pair) for pair in ((_SOP_CLASS, _MEDIA_STORAGE_CLASS), (_SOP_INSTANCE, _MEDIA_STORAGE_INSTANCE))
    )
    return sop_class and sop_instance


def _is_uid(text: str) -> bool:
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def _is_data_set(head: bytes, start: int) -> bool:
    """Whether at least two data elements that may begin a data set stand here."""
    return _byte_order(head, start) is not None and len(list(islice(_elements(head, start), 2))) == 2


def _uids(head: bytes, start: int) -> dict[int, str]:
    """UIDs of the file meta information and the SOP Common module by tag, as far as the bytes go."""
    found = {}
    for tag, begin, end in _elements(head, start):
        if tag in _UIDS:
            found[tag] = head[begin:end].rstrip(b"\0 ").decode("latin-1")
        if tag >= _SOP_INSTANCE:
            break
    return found


def _byte_order(head: bytes, start: int) -> Literal["little", "big"] | None:
    """Byte order in which a data set may begin here."""
    if len(head) < start + 2:
        return None
    first, second = head[start : start + 2]
    if second == 0 and first in _FIRST_GROUPS:
        return "little"
    return "big" if first == 0 and second in _FIRST_GROUPS else None


def _elements(head: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Walk over the outermost data elements in ascending order, until one makes no sense or the bytes end.

    Yields tag and bounds of the value (DICOM PS3.5 7.1). Each element may have an explicit VR or not. Of sequences only those of undefined length
    are looked into, to find their end.
    """
    order = _byte_order(head, start) or "little"
    position, depth, previous = start, 0, -1
    while position + 8 <= len(head):
        group = int.from_bytes(head[position : position + 2], order)
        if group == 0x0800 and previous >> 16 == 0x0002:  # file meta information is little endian, what follows may be big endian
            order, group = "big", 0x0008
        tag = group << 16 | int.from_bytes(head[position + 2 : position + 4], order)
        vr = head[position + 4 : position + 6]
        begin = position + 8
        if group == 0xFFFE or vr not in _VRS:
            length = int.from_bytes(head[position + 4 : begin], order)
        elif vr in _LONG_VRS:
            begin += 4
            length = int.from_bytes(head[position + 8 : begin], order)
        else:
            length = int.from_bytes(head[position + 6 : begin], order)
        if tag in (_ITEM_END, _SEQUENCE_END):
            length = 0
            depth -= tag == _SEQUENCE_END
        elif length == _UNDEFINED:
            length = 0
            depth += tag != _ITEM
        elif depth == 0:
            if tag <= previous or begin + length > len(head):
                return
            yield tag, begin, begin + length
            previous = tag
        position = begin + length


# ------------------------------------------------------------------------------------------------------------- archives and compressed streams

_TAR_CHECKSUM = re.compile(rb" *([0-7]{1,7})[ \0]*")


def _archive(head: bytes) -> FileType | None:
    """Recognise archives and compressed streams that say so at their beginning."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08PK\x03\x04", b"PK00PK\x03\x04")):
        return FileType("zip")
    if head.startswith(b"\x1f\x8b\x08") and len(head) >= 4 and not head[3] & 0xE0:  # RFC 1952: reserved flags are zero
        return FileType("gzip")
    if head.startswith(b"BZh") and b"1" <= head[3:4] <= b"9" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return FileType("bzip2")
    if head.startswith(b"\xfd7zXZ\0\0") and len(head) >= 12 and head[7] < 0x10 and struct.unpack_from("<I", head, 8)[0] == crc32(head[6:8]):
        return FileType("xz")
    return None


def _is_tar(head: bytes) -> bool:
    """Whether a header block with a right checksum stands at the beginning: POSIX, GNU or the older form without ``ustar``."""
    block = head[:512]
    checksum = _TAR_CHECKSUM.fullmatch(block[148:156])
    if len(block) < 512 or checksum is None or not (block[0] or block[257:262] == b"ustar"):
        return False
    stated = int(checksum.group(1), 8)
    rest = block[:148] + b" " * 8 + block[156:]
    # Some old programs added the bytes up as signed numbers.
    return stated == sum(rest) or stated == sum(byte - 256 if byte > 127 else byte for byte in rest)


def _ends_as_zip(stream: BinaryIO, tail: bytes, tail_start: int) -> bool:
    """Whether the stream ends as a ZIP whose central directory is where its end says (APPNOTE 4.3.16): one with something put before it."""
    position = tail.rfind(b"PK\x05\x06")
    while position >= 0:
        if position + 22 <= len(tail):
            size, offset, comment = struct.unpack_from("<IIH", tail, position + 12)
            end = position
            if 0xFFFFFFFF in (size, offset) and tail[position - 20 : position - 16] == b"PK\x06\x07" and position >= 76:  # ZIP64
                end = position - 76
                size, offset = struct.unpack_from("<QQ", tail, end + 40)
            directory = tail_start + end - size
            is_last = position + 22 + comment == len(tail)
            if is_last and directory >= offset and size >= 46 and _read(stream, directory, 4) == b"PK\x01\x02":
                return True
        position = tail.rfind(b"PK\x05\x06", 0, position)
    return False


# ------------------------------------------------------------------------------------------------------------------------- everything else

# What puremagic does not know, names several ways, or finds on too little evidence; also what may carry a ZIP at its end and stays what it is.
_SIGNATURES = (
    (0, b"%PDF-", "pdf"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"II+\0", "tiff"),
    (0, b"MM\0+", "tiff"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
    (0, b"\xffO\xffQ", "j2k"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    (0, b"7z\xbc\xaf'\x1c", "7z"),
    (0, b"Rar!\x1a\x07", "rar"),
    (0, b"MSCF\0\0\0\0", "cab"),
    (0, b"(\xb5/\xfd", "zstd"),
    (0, b'\x04"M\x18', "lz4"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "ole"),
    (0, b"\0\x05\x16\x07", "appledouble"),
    (0, b"\0\x05\x16\0", "applesingle"),
    (0, b"\0\0\0\x01Bud1", "ds_store"),
    (0, b"L\0\0\0\x01\x14\x02\0", "lnk"),
    (344, b"n+1\0", "nifti"),
    (344, b"ni1\0", "nifti"),
    (4, b"n+2\0\r\n\x1a\n", "nifti"),
    (4, b"ni2\0\r\n\x1a\n", "nifti"),
    (0, b"NRRD000", "nrrd"),
    (0, b"ObjectType = Image", "metaimage"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"CDF\x01", "netcdf"),
    (0, b"CDF\x02", "netcdf"),
    (0, b"MATLAB 5.0 MAT-file", "matlab"),
    (0, b"\x93NUMPY", "numpy"),
    (0, b"PAR1", "parquet"),
    (0, b"SQLite format 3\0", "sqlite"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"\0\0\x01\xba", "mpeg"),
    (0, b"\0\0\x01\xb3", "mpeg"),
    (0, b"{\\rtf", "rtf"),
    (0, b"%!PS", "postscript"),
)
_RIFF = {b"WAVE": "wav", b"AVI ": "avi", b"WEBP": "webp"}
_BMP_HEADERS = frozenset(struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124))
_ISO_9660 = 32_769  # where its first volume descriptor says CD001
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_HIGH = re.compile(rb"[\x80-\xff]")
_HTML = re.compile(r"<(?:!doctype\s+html|html|head|body|title)\b")
_XML = re.compile(r"<[a-z_][\w.:-]*[\s/>]")
_JSON = re.compile(r"""[\[{]\s*["{\[]""")
_WORD = re.compile(r"[a-z0-9][a-z0-9_+-]{0,15}")
_SYNONYMS = {"jpg": "jpeg", "tif": "tiff", "htm": "html", "txt": "text", "mpg": "mpeg"}
# Words with a meaning for others, kept for what passed the checks above.
_RESERVED = DICOM_TYPES | ARCHIVE_TYPES | COMPRESSED_TYPES | {"dcm", "gz", "bz2", "cbt", "empty", "zeros", "unknown"}


def _by_signature(head: bytes) -> str | None:
    if head.startswith(b"RIFF") and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head.startswith(b"\0\0") and head[4:8] == b"ftyp":  # behind the length of that box
        return "mp4"
    if head.startswith(b"BM") and head[6:10] == bytes(4) and head[14:18] in _BMP_HEADERS:
        return "bmp"
    for offset, signature, name in _SIGNATURES:
        if head.startswith(signature, offset):
            return name
    return None


def _program(head: bytes) -> str | None:
    # Not among the signatures, which come before the look for a ZIP: a self-extracting archive is an archive.
    if head.startswith(b"MZ"):
        return "exe"
    return "elf" if head.startswith(b"\x7fELF") else None


def _text(head: bytes, *, is_whole: bool) -> str | None:
    """Kind of text, or None when it is none."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif _CONTROL.search(head) is not None:
        return None
    else:
        encoding = "utf-8-sig"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head, final=is_whole)
    except UnicodeDecodeError:
        # Some 8-bit character set, if most of it is plain.
        return "text" if encoding == "utf-8-sig" and 2 * len(_HIGH.findall(head)) < len(head) else None
    if encoding == "utf-16" and _CONTROL.search(text.encode("utf-8", "surrogatepass")) is not None:
        return None
    start = text.strip()
    if start.startswith("<"):
        return _markup(start.lower(), is_whole=is_whole)
    return "json" if _is_json(start, is_whole=is_whole) else "text"


def _markup(text: str, *, is_whole: bool) -> str:
    if _HTML.search(text, 0, 1024) is not None:
        return "html"
    if "<svg" in text[:1024]:
        return "svg"
    if text.startswith("<?xml") or (_XML.match(text) is not None and (not is_whole or text.endswith(">"))):
        return "xml"
    return "text"


def _is_json(text: str, *, is_whole: bool) -> bool:
    if not text.startswith(("{", "[")):
        return False
    if not is_whole:
        return _JSON.match(text) is not None
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _by_library(head: bytes) -> str | None:
    import puremagic  # late: nearly all files are recognised before, and its table takes time and memory

    try:
        matches = puremagic.magic_string(head)
    except puremagic.PureError:
        return None
    except Exception as error:  # foreign code on hostile bytes: a missing name is no reason to lose the file
        logger.debug("file type: puremagic raised %s", type(error).__name__)
        return None
    for match in matches:
        name: str = match.extension.strip(".").lower()
        # Negative offsets count from the end, which it was not given. Short or mostly NUL signatures occur in any binary file,
        # and what has control bytes is no text.
        is_strong = match.offset >= 0 and len(match.byte_match.replace(b"\0", b"")) >= 4 and not match.mime_type.startswith("text/")
        if is_strong and name not in _RESERVED and _WORD.fullmatch(name):
            return _SYNONYMS.get(name, name)
    return None
