"""DICOM JSON read back: large data sets as small ones, but for long lists of numbers."""

import numpy as np
import orjson
import pytest

from pixels_assets.dicom.json_reading import LARGE_BYTES, read_json, read_outline

TEXT = '"Value":[' + "1.5," * 100 + "2.5]"


def contours(count):
    """A data set with as many contours, and with values that look like what is looked for."""
    contour = {
        "30060046": {"vr": "IS", "Value": [3]},
        "30060050": {"vr": "DS", "Value": [number / 8 for number in range(1000)]},
        "300A00F6": {"vr": "DS", "Value": [1.5] * 40 + [None] + [2.5] * 100},
        "00281101": {"vr": "US", "Value": list(range(300))},
    }
    named = {"00081030": {"vr": "LO", "Value": [TEXT]}, "00080008": {"vr": "CS"}}
    return named | {"30060039": {"vr": "SQ", "Value": [{"30060040": {"vr": "SQ", "Value": [contour] * count}}, {}]}}


@pytest.mark.parametrize("count", [1, 200])
def test_a_data_set_is_read_whole(count) -> None:
    data = contours(count)
    text = orjson.dumps(data)
    found = read_json(memoryview(text))
    arrays = []
    for contour in found["30060039"]["Value"][0]["30060040"]["Value"]:
        arrays.append(contour["30060050"]["Value"])
        contour["30060050"]["Value"] = list(arrays[-1])
    assert found == data
    assert all(isinstance(array, np.ndarray) for array in arrays) == (len(text) >= LARGE_BYTES)


def test_the_outline_of_a_large_one_has_the_first_of_many_numbers() -> None:
    data = contours(200)
    assert read_outline(orjson.dumps(contours(1))) == contours(1)
    found = read_outline(orjson.dumps(data))
    for contour in data["30060039"]["Value"][0]["30060040"]["Value"]:
        contour["30060050"]["Value"] = [0.0]
        contour["00281101"]["Value"] = [0]
    assert found == data


def test_what_is_nested_deeper_than_python_goes_is_a_value_error() -> None:
    deep = b'{"0040A730":{"vr":"SQ","Value":[' * 100_000 + b"{}" + b"]}}" * 100_000
    for read in (read_json, read_outline):
        with pytest.raises(ValueError, match="nested too deep"):
            read(deep)
