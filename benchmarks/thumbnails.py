"""How far a thumbnail is above the bare decoder, for each transfer syntax, and beside the way by matplotlib.

Generates its files (one CT slice with noise, 512x512, 16 bits), measures in one process on one thread, alternating, and prints a table.
Run as ``python -m benchmarks.thumbnails``; needs the ``bench`` extra for the way by matplotlib.
"""

import argparse
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import md5
from pathlib import Path
from statistics import median
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import generate_uid

from pixels_assets.dicom.codecs import Codec, PixelDescription, decode
from pixels_assets.dicom.pixels import PixelSource
from pixels_assets.dicom.reader import Header, read_header
from pixels_assets.dicom.thumbnails import Thumbnail, make_thumbnail

SIDE = 512
LIMIT = 256 << 20
Frame = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A transfer syntax and how the benchmark encodes a frame in it."""

    name: str
    uid: str
    encode: Callable[[Frame], bytes]
    bits: int = 16
    encapsulated: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured for one transfer syntax: medians, milliseconds of process CPU time for one file.

    Parameters
    ----------
    name, uid : str
    kib : float
        Size of the encoded frame.
    decoder : float
        The bare decoder, in full: bytes in memory to an array.
    header : float
        Path to header JSON and typed values.
    thumbnail : float
        Path to header JSON, typed values and thumbnail.
    accelerator : float or None
        Path to RGBA picture by pydicom and matplotlib; None where matplotlib is not installed or the way fails.
    """

    name: str
    uid: str
    kib: float
    decoder: float
    header: float
    thumbnail: float
    accelerator: float | None

    @property
    def above_decoder(self) -> float:
        """Times the bare decoder."""
        return self.thumbnail / self.decoder

    @property
    def gain(self) -> float | None:
        """Times faster than the way by matplotlib."""
        return None if self.accelerator is None else self.accelerator / self.thumbnail


def _rle(frame: Frame) -> bytes:
    options = {"rows": SIDE, "columns": SIDE, "samples_per_pixel": 1, "number_of_frames": 1, "photometric_interpretation": "MONOCHROME2"}
    bits = 8 * frame.itemsize
    return RLELosslessEncoder.encode(frame, bits_allocated=bits, bits_stored=bits, pixel_representation=0, **options)  # type: ignore[arg-type]


KINDS = (
    Kind("explicit little endian", "1.2.840.10008.1.2.1", lambda frame: frame.tobytes(), encapsulated=False),
    Kind("implicit little endian", "1.2.840.10008.1.2", lambda frame: frame.tobytes(), encapsulated=False),
    Kind("RLE", "1.2.840.10008.1.2.5", _rle),
    Kind("JPEG-LS", "1.2.840.10008.1.2.4.80", lambda frame: bytes(imagecodecs.jpegls_encode(frame))),
    Kind(
        "JPEG 2000 lossless",
        "1.2.840.10008.1.2.4.90",
        lambda frame: bytes(imagecodecs.jpeg2k_encode(frame, reversible=True, level=0, codecformat="j2k")),
    ),
    Kind("JPEG 2000 lossy", "1.2.840.10008.1.2.4.91", lambda frame: bytes(imagecodecs.jpeg2k_encode(frame, level=84, codecformat="j2k"))),
    Kind("HTJ2K lossless", "1.2.840.10008.1.2.4.201", lambda frame: bytes(imagecodecs.htj2k_encode(frame, reversible=True))),
    Kind(
        "JPEG lossless",
        "1.2.840.10008.1.2.4.70",
        lambda frame: bytes(imagecodecs.jpeg8_encode(frame, lossless=True, bitspersample=16)),
    ),
    Kind("JPEG 8 bit", "1.2.840.10008.1.2.4.50", lambda frame: bytes(imagecodecs.jpeg8_encode(frame, level=90)), bits=8),
)


def slices(count: int) -> list[Frame]:
    """Make CT slices of 12 stored bits: pydicom's CT enlarged, with the blurred noise of a soft kernel."""
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    small = Image.fromarray(dataset.pixel_array.astype(np.float32))
    large = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    made = []
    for seed in range(count):
        noise = np.random.default_rng(seed).normal(0, 24, (SIDE, SIDE))
        noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))) / 4
        made.append(np.clip(np.rint(large + noise), 0, 4095).astype(np.uint16))
    return made


def write_files(folder: Path, kinds: Sequence[Kind] = KINDS, *, count: int = 8) -> dict[str, list[Path]]:
    """Write `count` files in each transfer syntax, headers as those of one series.

    Parameters
    ----------
    folder : Path
        Must exist.
    kinds : sequence of Kind
    count : int
    """
    frames = slices(count)
    paths: dict[str, list[Path]] = {}
    for kind in kinds:
        series = generate_uid()
        for number, frame in enumerate(frames):
            dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
            stored = frame
            dataset.RescaleIntercept, dataset.WindowCenter, dataset.WindowWidth = "-1024", "40", "400"
            if kind.bits == 8:
                stored = np.clip((frame.astype(np.float32) - 1024 - 40 + 200) / 400 * 255, 0, 255).astype(np.uint8)
                dataset.RescaleIntercept, dataset.WindowCenter, dataset.WindowWidth = "0", "128", "256"
            dataset.Rows = dataset.Columns = SIDE
            dataset.BitsAllocated, dataset.BitsStored = kind.bits, min(12, kind.bits)
            dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
            dataset.SeriesInstanceUID, dataset.SOPInstanceUID, dataset.InstanceNumber = series, generate_uid(), number
            for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"):
                if keyword in dataset:
                    del dataset[keyword]
            dataset.file_meta.TransferSyntaxUID = kind.uid
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            data = kind.encode(stored)
            dataset.PixelData = encapsulate([data]) if kind.encapsulated else data
            dataset["PixelData"].VR = "OB" if kind.encapsulated else "OW"
            dataset["PixelData"].is_undefined_length = kind.encapsulated
            path = folder / f"{kind.uid}-{number:03d}.dcm"
            pydicom.dcmwrite(path, dataset, implicit_vr=kind.uid == "1.2.840.10008.1.2", little_endian=True, enforce_file_format=False)
            paths.setdefault(kind.name, []).append(path)
    return paths


def read(path: Path) -> Header:
    """Path to header JSON and typed values."""
    data = path.read_bytes()
    header = read_header(io.BytesIO(data), len(data), max_deflated_bytes=LIMIT)
    assert isinstance(header, Header)
    return header


def thumbnail(path: Path, size: int = 256) -> Thumbnail:
    """Path to header and thumbnail, as a worker makes them."""
    header = read(path)
    made = make_thumbnail(PixelSource.of(header), size=size, max_bytes=LIMIT)
    assert isinstance(made, Thumbnail), made
    return made


@dataclass(frozen=True, slots=True)
class Picture:
    """What the accelerator keeps of an image: raw bytes, blue, green, red and opacity of each pixel, and a name made of their digest."""

    origin: str
    height: int
    width: int
    data: bytes


def by_matplotlib(path: Path) -> Picture:
    """Go the accelerator's way.

    pydicom's array shown in grey by matplotlib, axes and all; the figure saved as a PNG of 640x480, which is read again for its pixels, in another
    order of colours.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with pydicom.dcmread(path, defer_size=1000) as dataset:
        figure, axes = plt.subplots()
        axes.imshow(dataset.pixel_array, cmap="gray")
        saved = io.BytesIO()
        figure.savefig(saved, format="png")
        plt.close(figure)
    with Image.open(saved) as image:
        red, green, blue, opacity = image.convert("RGBA").split()
    picture = Image.merge("RGBA", (blue, green, red, opacity))
    data = picture.tobytes()
    return Picture(f"matplotlib-{md5(data, usedforsecurity=False).hexdigest()}.png", picture.height, picture.width, data)


def lend_decoders() -> None:
    """Give pydicom decoders for JPEG lossless, for which it has none that may be installed: the other way shall not fail where this one works."""
    for last in ("57", "70"):
        decoder = get_decoder(f"1.2.840.10008.1.2.4.{last}")
        if not decoder.is_available:
            decoder.add_plugin("imagecodecs", (__name__, "_lent"))


def _lent(source: bytes, runner: Any) -> bytearray:
    return bytearray(imagecodecs.jpeg8_decode(source).tobytes())


def is_available(uid: str) -> bool:
    """Whether pydicom may ask for this decoder."""
    return True


def _cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def measure(paths: dict[str, list[Path]], *, rounds: int = 3, size: int = 256, with_matplotlib: bool = True) -> list[Row]:
    """Measure all transfer syntaxes, alternating between them and between the ways.

    Parameters
    ----------
    paths : dict of str to list of Path
        As `write_files` gives them.
    rounds : int
        Times that each file is measured.
    size : int
        Longest side of the thumbnails, pixels.
    with_matplotlib : bool
        Whether to go the accelerator's way as well.
    """
    kinds = {kind.name: kind for kind in KINDS}
    ways: dict[str, dict[str, list[float]]] = {name: {"decoder": [], "header": [], "thumbnail": [], "accelerator": []} for name in paths}
    encoded = {name: [_frame_of(path) for path in files] for name, files in paths.items()}
    lend_decoders()
    for turn in range(rounds + 1):  # the first one warms up
        for number in range(max(map(len, paths.values()))):
            for name, files in paths.items():
                if number >= len(files):
                    continue
                path, data, kind = files[number], encoded[name][number], kinds[name]
                times = {
                    "decoder": _cpu(lambda data=data, kind=kind: _decode(data, kind)),  # type: ignore[misc]
                    "header": _cpu(lambda path=path: read(path)),  # type: ignore[misc]
                    "thumbnail": _cpu(lambda path=path: thumbnail(path, size)),  # type: ignore[misc]
                }
                if with_matplotlib and number < 2:
                    times["accelerator"] = _cpu(lambda path=path: by_matplotlib(path))  # type: ignore[misc]
                if turn:
                    for way, taken in times.items():
                        ways[name][way].append(taken)
    return [
        Row(
            name,
            kinds[name].uid,
            median(map(len, encoded[name])) / 1024,
            median(found["decoder"]),
            median(found["header"]),
            median(found["thumbnail"]),
            median(found["accelerator"]) if found["accelerator"] else None,
        )
        for name, found in ways.items()
    ]


def _frame_of(path: Path) -> bytes:
    dataset = pydicom.dcmread(path)
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return bytes(dataset.PixelData)
    return next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))


_DECODERS = {
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_decode,
    "1.2.840.10008.1.2.4.90": lambda data: imagecodecs.jpeg2k_decode(data, numthreads=1),
    "1.2.840.10008.1.2.4.91": lambda data: imagecodecs.jpeg2k_decode(data, numthreads=1),
    "1.2.840.10008.1.2.4.201": imagecodecs.htj2k_decode,
    "1.2.840.10008.1.2.4.70": imagecodecs.jpeg8_decode,
    "1.2.840.10008.1.2.4.50": imagecodecs.jpeg8_decode,
}


def _decode(data: bytes, kind: Kind) -> object:
    """Decode by the fastest library there is, without any look at a header; native bytes are copied, as out of a file."""
    if kind.uid in _DECODERS:
        return _DECODERS[kind.uid](data)
    if kind.encapsulated:
        description = PixelDescription(SIDE, SIDE, 1, kind.bits, kind.bits, kind.bits - 1, False, False, "MONOCHROME2")
        return decode(Codec.RLE, data, description, max_bytes=LIMIT)
    return np.frombuffer(data, "<u2").copy()


def table(rows: Sequence[Row]) -> str:
    """Rows for people."""
    lines = [f"{'transfer syntax':24} {'KiB':>6} {'decoder':>9} {'header':>8} {'thumbnail':>10} {'x decoder':>10} {'matplotlib':>11} {'gain':>6}"]
    for row in rows:
        accelerator = "-" if row.accelerator is None else f"{row.accelerator:.1f}"
        gain = "-" if row.gain is None else f"{row.gain:.0f}x"
        ours = f"{row.decoder:9.3f} {row.header:8.3f} {row.thumbnail:10.3f} {row.above_decoder:9.2f}x"
        lines.append(f"{row.name:24} {row.kib:6.0f} {ours} {accelerator:>11} {gain:>6}")
    known = [row for row in rows if row.accelerator is not None]
    if known:
        mine, theirs = (sum(times) / len(known) for times in ([row.thumbnail for row in known], [row.accelerator or 0 for row in known]))
        lines.append(f"{'all, the same number':24} {'':25} {mine:10.3f} {'':10} {theirs:11.1f} {theirs / mine:5.0f}x")
    lines.append("milliseconds of process CPU time for one file, medians; the bare decoder decodes in full")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=8, help="files in each transfer syntax")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256, help="longest side of the thumbnails, pixels")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--no-matplotlib", action="store_true", help="leave the other way out")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        paths = write_files(Path(folder), count=options.files)
        rows = measure(paths, rounds=options.rounds, size=options.size, with_matplotlib=not options.no_matplotlib)
    print(json.dumps([asdict(row) for row in rows]) if options.json else table(rows))


if __name__ == "__main__":
    main()
