"""Leave bit planes out of a JPEG 2000 codestream, so that a small picture of it decodes in half of the time.

Most of the decoding of a lossless codestream goes into its lowest bit planes, which are noise below what a window shows. Packet headers are written
again with fewer coding passes, and the packets of the resolutions that are not wanted are made empty; the coded bytes stay as they are.

Must not decode. Gives up on everything but the plain case: one tile, component and layer, one precinct in each resolution that is wanted, no coding
options. ITU-T T.800 annexes A and B.
"""

import math
import struct
from dataclasses import dataclass

__all__ = ["without_low_planes"]

_SOC, _SIZ, _COD, _QCD, _SOT, _SOD = b"\xff\x4f", 0xFF51, 0xFF52, 0xFF5C, 0xFF90, b"\xff\x93"
_COM, _LENGTHS = 0xFF64, frozenset({0xFF55, 0xFF57})
"""Comments, and the markers TLM and PLM, which are dropped, for their lengths are no longer true."""
_REVERSIBLE = 1
_WEIGHTS = {
    1: ((1.5, 1.038, 0.719), (2.75, 1.592, 0.922), (5.375, 2.919, 1.586), (10.68, 5.703, 3.043)),
    0: ((1.965, 1.011, 0.52), (4.177, 1.995, 0.966), (8.403, 4.178, 2.077), (16.9, 8.473, 4.216)),
}
"""What an error of one in a coefficient does to the picture: norms of the wavelets 5/3 (1) and 9/7 (0) for LL, HL or LH, and HH, by level."""
_MANY_BLOCKS, _MANY_SEGMENTS = 400, 1000
_UNKNOWN = 1 << 16


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the main header says, and where the packets are.

    `blocks` are the exponents of width and height of the code-blocks of each resolution, `packets` its number of packets; `steps` are exponent and
    mantissa of each band, LL first.
    """

    main_header: bytes
    columns: int
    rows: int
    levels: int
    blocks: tuple[tuple[int, int], ...]
    transform: int
    depth: int
    guard: int
    steps: tuple[tuple[int, int], ...]
    packets: tuple[int, ...]
    start: int
    stop: int


def without_low_planes(data: bytes, levels: int, tolerance: float, *, finest: float = 1) -> bytes | None:
    """Write a codestream that decodes, at reduced resolution, to nearly the same values.

    Parameters
    ----------
    data : bytes
        A codestream without boxes.
    levels : int
        Resolutions that the decoder will leave out.
    tolerance : float
        Bit planes are left out whose ones change a value by no more than this; on average the picture is off by about a third of it.
    finest : float
        So many times the tolerance is that of the finest bands that are kept: three quarters of all coefficients, of which noise is seen least.

    Returns
    -------
    bytes or None
        None when it is not of the plain kind or when its packets are damaged.
    """
    try:
        layout = _layout(data)
        if layout is None or layout.levels < levels:
            return None
        packets = _packets(data, layout, levels, tolerance, finest)
    except (IndexError, struct.error):
        return None
    if packets is None:
        return None
    tile = struct.pack(">HHHLBB", _SOT, 10, 0, 14 + len(packets), 0, 1) + _SOD
    return layout.main_header + tile + packets + b"\xff\xd9"


def _layout(data: bytes) -> _Layout | None:
    if data[:2] != _SOC:
        return None
    position, columns, rows, depth, levels, width, height, transform, guard = 2, 0, 0, 0, -1, 0, 0, 0, 0
    style, order, precincts = 0, 0, b""
    steps: tuple[tuple[int, int], ...] = ()
    kept = [_SOC]
    while True:
        marker, length = struct.unpack_from(">HH", data, position)
        segment = data[position : position + 2 + length]
        if marker == _SOT:
            break
        if len(kept) > _MANY_SEGMENTS:
            return None
        if marker == _SIZ:
            columns, rows, left, top, tile_columns, tile_rows, tile_left, tile_top, samples = struct.unpack_from(">8LH", data, position + 6)
            if left or top or tile_left or tile_top or samples != 1 or tile_columns < columns or tile_rows < rows or max(columns, rows) > 1 << 15:
                return None
            depth = (data[position + 40] & 0x7F) + 1
        elif marker == _COD:
            style, order, layers, _, levels, width, height, options, transform = struct.unpack_from(">BBHBBBBBB", data, position + 4)
            if style > 1 or layers != 1 or options or transform > 1 or width > 8 or height > 8:
                return None
            precincts = segment[14:] if style else b"\xff" * (levels + 1)
        elif marker == _QCD:
            guard, steps = segment[4] >> 5, _steps(segment[4] & 0x1F, segment[5:])
        elif marker != _COM and marker not in _LENGTHS:
            return None
        if marker not in _LENGTHS:
            kept.append(segment)
        position += 2 + length
    length, tile, size, part, parts = struct.unpack_from(">HHLBB", data, position + 2)
    start = position + 14
    if tile or part or parts > 1 or levels < 0 or not columns or not rows or data[position + 12 : start] != _SOD:
        return None
    stop = position + size if size else len(data) - 2
    if stop > len(data) or len(steps) < 3 * levels + 1 or len(precincts) < levels + 1:
        return None
    packets, blocks = [], []
    for resolution, sizes in enumerate(precincts[: levels + 1]):
        across, down = 1 << (levels - resolution + (sizes & 15)), 1 << (levels - resolution + (sizes >> 4))
        packets.append(-(-columns // across) * -(-rows // down))
        # Precincts cut code-blocks too (B.7); those of a resolution above the lowest belong to bands of half its size.
        halved = int(resolution > 0)
        blocks.append((min(width + 2, (sizes & 15) - halved), min(height + 2, (sizes >> 4) - halved)))
    if min(map(min, blocks)) < 0:
        return None
    if order > 2 and max(packets) > 1:  # packets by position, all resolutions mixed
        return None
    return _Layout(b"".join(kept), columns, rows, levels, tuple(blocks), transform, depth, guard, steps, tuple(packets), start, stop)


def _steps(style: int, values: bytes) -> tuple[tuple[int, int], ...]:
    """Read exponents and mantissas of the quantization steps (A.6.4); with one for all, the others follow from it."""
    if style == 0:
        return tuple((value >> 3, 0) for value in values)
    pairs = [(value >> 11, value & 0x7FF) for (value,) in struct.iter_unpack(">H", values[: len(values) // 2 * 2])]
    if style == 1 and pairs:
        exponent, mantissa = pairs[0]
        return (pairs[0], *((max(0, exponent - level), mantissa) for level in range(32) for _ in range(3)))
    return tuple(pairs)


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


def _packets(data: bytes, layout: _Layout, levels: int, tolerance: float, finest: float) -> bytes | None:
    """Write the packets again: one for each resolution, lowest first."""
    position, result = layout.start, []
    kept = layout.levels - levels
    if max(layout.packets[: kept + 1]) > 1:
        return None
    for resolution in range(kept + 1):
        bits = _Bits(data, position)
        if not bits.copy():
            result.append(b"\0")
            position = bits.position
            continue
        body = 0
        for band, columns, rows in _bands(layout, resolution):
            planes, least = _planes(layout, levels, resolution, band, tolerance * finest if 0 < resolution == kept else tolerance)
            taken = _copy_band(bits, columns, rows, planes, least)
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
    return b"".join(result) + bytes(sum(layout.packets[kept + 1 :]))


def _planes(layout: _Layout, levels: int, resolution: int, band: int, tolerance: float) -> tuple[int, int]:
    """Count the bit planes that a band may have, and the lowest of them that need not be there (E.1)."""
    exponent, mantissa = layout.steps[0 if resolution == 0 else 3 * resolution - 2 + band]
    kind = 0 if resolution == 0 else 1 if band < 2 else 2
    gain = 0 if resolution == 0 else 1 if band < 2 else 2
    step = 1.0 if layout.transform == _REVERSIBLE else 2.0 ** (layout.depth + gain - exponent) * (1 + mantissa / 2048)
    weights = _WEIGHTS[layout.transform]
    below = layout.levels - levels - max(1, resolution)
    change = step * weights[min(below, len(weights) - 1)][kind] if layout.levels > levels else step
    return layout.guard + exponent - 1, max(0, math.floor(math.log2(tolerance / change)) + 1) if tolerance >= change else 0


def _bands(layout: _Layout, resolution: int) -> list[tuple[int, int, int]]:
    """List the number of each band of a resolution that has coefficients, and its code-blocks across and down (B.5, B.7)."""
    if resolution == 0:
        step, offsets = 1 << layout.levels, [(0, 0)]
    else:
        step = 1 << (layout.levels - resolution + 1)
        offsets = [(step // 2, 0), (0, step // 2), (step // 2, step // 2)]
    bands = []
    for band, (across, down) in enumerate(offsets):
        columns, rows = -(-(layout.columns - across) // step), -(-(layout.rows - down) // step)
        if columns > 0 and rows > 0:
            wide, high = layout.blocks[resolution]
            bands.append((band, -(-columns // (1 << wide)), -(-rows // (1 << high))))
    return bands


def _copy_band(bits: _Bits, columns: int, rows: int, planes: int, least: int) -> int | None:
    """Copy a band's part of a packet header without the passes of the `least` lowest of its planes; give the bytes of its code-blocks."""
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
                if length_bits > 32:
                    return None
            length = bits.number(length_bits + passes.bit_length() - 1)
            # The first bit plane that is not empty has one pass, each further one three: an encoder may have left some out already.
            left = min(passes, max(1, 3 * (planes - (threshold - 1) - least) - 2))
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
