"""Leave bit planes out of a JPEG 2000 codestream, so that a small picture of it decodes in half of the time.

Most of the decoding of a lossless codestream goes into its lowest bit planes, which are noise below what a window shows. Packet headers are written
again with fewer coding passes, and the packets of the resolutions that are not wanted are made empty; the coded bytes stay as they are.

Must not decode. Gives up on everything but the plain case: one tile, component, layer and precinct, no coding options. ITU-T T.800 annexes A and B.
"""

import struct
from dataclasses import dataclass

__all__ = ["without_low_planes"]

_SOC, _SIZ, _COD, _SOT, _SOD = b"\xff\x4f", 0xFF51, 0xFF52, 0xFF90, b"\xff\x93"
_HARMLESS = frozenset({0xFF50, 0xFF55, 0xFF57, 0xFF5C, 0xFF64})
"""CAP, TLM, PLM, QCD and COM; a TLM is dropped, for its lengths are no longer true."""
_REVERSIBLE = 1
_MANY_BLOCKS = 400
_UNKNOWN = 1 << 16


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the main header says, and where the packets are."""

    main_header: bytes
    columns: int
    rows: int
    levels: int
    block_columns: int
    block_rows: int
    start: int
    stop: int


def without_low_planes(data: bytes, levels: int, planes: int) -> bytes | None:
    """Write a codestream that decodes, at reduced resolution, to nearly the same values.

    Parameters
    ----------
    data : bytes
        A codestream without boxes.
    levels : int
        Resolutions that the decoder will leave out.
    planes : int
        Bit planes to leave out of the highest resolution that is left; of each lower one, one less.

    Returns
    -------
    bytes or None
        None when it is not of the plain kind, reversible, or when its packets are damaged.
    """
    try:
        layout = _layout(data)
        if layout is None or layout.levels < levels:
            return None
        packets = _packets(data, layout, levels, planes)
    except (IndexError, struct.error):
        return None
    if packets is None:
        return None
    tile = struct.pack(">HHHLBB", _SOT, 10, 0, 14 + len(packets), 0, 1) + _SOD
    return layout.main_header + tile + packets + b"\xff\xd9"


def _layout(data: bytes) -> _Layout | None:
    if data[:2] != _SOC:
        return None
    position, columns, rows, levels, width, height = 2, 0, 0, -1, 0, 0
    kept = [_SOC]
    while True:
        marker, length = struct.unpack_from(">HH", data, position)
        segment = data[position : position + 2 + length]
        if marker == _SOT:
            break
        if marker == _SIZ:
            columns, rows, left, top, tile_columns, tile_rows, tile_left, tile_top, samples = struct.unpack_from(">8LH", data, position + 6)
            if left or top or tile_left or tile_top or samples != 1 or tile_columns < columns or tile_rows < rows or max(columns, rows) > 1 << 15:
                return None
        elif marker == _COD:
            style, _, layers, _, levels, width, height, options, transform = struct.unpack_from(">BBHBBBBBB", data, position + 4)
            if style or layers != 1 or options or transform != _REVERSIBLE or width > 8 or height > 8:
                return None
        elif marker not in _HARMLESS:
            return None
        if marker != 0xFF55:
            kept.append(segment)
        position += 2 + length
    length, tile, size, part, parts = struct.unpack_from(">HHLBB", data, position + 2)
    start = position + 14
    if tile or part or parts > 1 or levels < 0 or not columns or not rows or data[position + 12 : start] != _SOD:
        return None
    stop = position + size if size else len(data) - 2
    if stop > len(data):
        return None
    return _Layout(b"".join(kept), columns, rows, levels, width + 2, height + 2, start, stop)


class _Bits:
    """Reads the bits of a packet header and writes them again (B.10.1: a byte of ones is followed by a stuffed zero)."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self.position = data, position
        self._byte, self._left = 0, 0
        self.written: list[int] = []

    def take(self) -> int:
        """Read a bit."""
        if not self._left:
            self._left = 7 if self._byte == 0xFF else 8
            self._byte = self._data[self.position]
            self.position += 1
        self._left -= 1
        return self._byte >> self._left & 1

    def copy(self) -> int:
        """Read a bit and write it."""
        bit = self.take()
        self.written.append(bit)
        return bit

    def number(self, count: int) -> int:
        """Read a number."""
        found = 0
        for _ in range(count):
            found = found << 1 | self.take()
        return found

    def write(self, value: int, count: int) -> None:
        """Write a number."""
        self.written += [value >> place & 1 for place in range(count - 1, -1, -1)]

    def finish(self) -> bytes:
        """End reading at a whole byte and give what was written."""
        if self._byte == 0xFF and self.position:
            self.position += 1
        result, byte, left = bytearray(), 0, 8
        for bit in self.written:
            left -= 1
            byte |= bit << left
            if not left:
                result.append(byte)
                byte, left = 0, 7 if byte == 0xFF else 8
        if left < 8 and not (left == 7 and result and result[-1] == 0xFF):
            result.append(byte)
        if result and result[-1] == 0xFF:
            result.append(0)
        return bytes(result)


class _TagTree:
    """Numbers of a grid of code-blocks, coded as minima of minima (B.10.2)."""

    def __init__(self, columns: int, rows: int) -> None:
        self._shapes = [(columns, rows)]
        while columns > 1 or rows > 1:
            columns, rows = (columns + 1) // 2, (rows + 1) // 2
            self._shapes.append((columns, rows))
        self._low = [[0] * (wide * high) for wide, high in self._shapes]
        self._value = [[_UNKNOWN] * (wide * high) for wide, high in self._shapes]

    def is_below(self, column: int, row: int, threshold: int, bits: _Bits) -> bool:
        """Whether the number of a code-block is below a threshold; its bits are copied."""
        low = 0
        value = _UNKNOWN
        for level in range(len(self._shapes) - 1, -1, -1):
            at = (row >> level) * self._shapes[level][0] + (column >> level)
            lows, values = self._low[level], self._value[level]
            low, value = max(low, lows[at]), values[at]
            while low < threshold and low < value:
                if bits.copy():
                    value = values[at] = low
                else:
                    low += 1
            lows[at] = low
        return value < threshold


def _packets(data: bytes, layout: _Layout, levels: int, planes: int) -> bytes | None:
    """Write the packets again: one for each resolution, lowest first."""
    position, result = layout.start, []
    kept = layout.levels - levels
    for resolution in range(kept + 1):
        fewer = max(0, planes - (kept - resolution)) if resolution else 0
        bits = _Bits(data, position)
        if not bits.copy():
            result.append(b"\0")
            position = bits.position
            continue
        body = 0
        for columns, rows in _bands(layout, resolution):
            taken = _copy_band(bits, columns, rows, fewer)
            if taken is None:
                return None
            body += taken
        header = bits.finish()
        stop = bits.position + body
        if stop > layout.stop:
            return None
        result += [header, data[bits.position : stop]]
        position = stop
    # An empty packet is one zero bit.
    return b"".join(result) + bytes(levels)


def _bands(layout: _Layout, resolution: int) -> list[tuple[int, int]]:
    """Code-blocks across and down in each band of a resolution that has any (B.5, B.7)."""
    if resolution == 0:
        step, offsets = 1 << layout.levels, [(0, 0)]
    else:
        step = 1 << (layout.levels - resolution + 1)
        offsets = [(step // 2, 0), (0, step // 2), (step // 2, step // 2)]
    bands = []
    for across, down in offsets:
        columns, rows = -(-(layout.columns - across) // step), -(-(layout.rows - down) // step)
        if columns > 0 and rows > 0:
            bands.append((-(-columns // (1 << layout.block_columns)), -(-rows // (1 << layout.block_rows))))
    return bands


def _copy_band(bits: _Bits, columns: int, rows: int, fewer: int) -> int | None:
    """Copy a band's part of a packet header with fewer passes; give the bytes of its code-blocks."""
    if columns * rows > _MANY_BLOCKS:
        return None
    inclusion, empty_planes, total = _TagTree(columns, rows), _TagTree(columns, rows), 0
    for row in range(rows):
        for column in range(columns):
            if not inclusion.is_below(column, row, 1, bits):
                continue
            threshold = 1
            while not empty_planes.is_below(column, row, threshold, bits):
                threshold += 1
                if threshold > 64:
                    return None
            passes = _take_passes(bits)
            length_bits = 3
            while bits.take():
                length_bits += 1
            length = bits.number(length_bits + passes.bit_length() - 1)
            # The first bit plane has one pass, each further one three.
            left = max(1, passes - 3 * fewer)
            _write_passes(bits, left)
            needed = max(3, length.bit_length() - (left.bit_length() - 1))
            bits.write((1 << (needed - 2)) - 2, needed - 2)
            bits.write(length, needed + left.bit_length() - 1)
            total += length
    return total


def _take_passes(bits: _Bits) -> int:
    """Read a number of coding passes (table B.4)."""
    if not bits.take():
        return 1
    if not bits.take():
        return 2
    found = bits.number(2)
    if found < 3:
        return 3 + found
    found = bits.number(5)
    return 6 + found if found < 31 else 37 + bits.number(7)


def _write_passes(bits: _Bits, count: int) -> None:
    if count == 1:
        bits.write(0, 1)
    elif count == 2:
        bits.write(0b10, 2)
    elif count <= 5:
        bits.write(0b1100 | count - 3, 4)
    elif count <= 36:
        bits.write(0b1111 << 5 | count - 6, 9)
    else:
        bits.write(0b111111111 << 7 | count - 37, 16)
