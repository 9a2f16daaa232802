"""Names of attributes as people write them, and where their values lie in the DICOM JSON model.

Holds the way from ``ReferencedSeriesSequence.SeriesInstanceUID`` or ``(0008,103E)`` to a JSON path. Must not read JSON: whoever has it follows the
path. What is not in the dictionary is named by its tag, private elements too.
"""

import re
from difflib import get_close_matches
from functools import lru_cache

from pydicom._dicom_dict import RepeatersDictionary
from pydicom.datadict import keyword_dict

from pixels_assets.errors import UsageError

_STEP = re.compile(r"(?P<name>[^\[\]]+?)\s*(?:\[(?P<number>[0-9]{1,9})\])?")
_TAG = re.compile(r"\(?([0-9A-F]{4}),? ?([0-9A-F]{4})\)?", re.IGNORECASE)
_FIRST_OF_REPEATING = {entry[4]: int(mask.replace("x", "0"), 16) for mask, entry in RepeatersDictionary.items()}
_BY_LOWER = {keyword.lower(): keyword for keyword in (*keyword_dict, *_FIRST_OF_REPEATING) if keyword}


def tag_of(name: str) -> int:
    """Tag that a keyword or a tag in hexadecimal digits names.

    Parameters
    ----------
    name : str
        A keyword of DICOM PS3.6 in any case, or a tag as ``0008103E``, ``0008,103E`` or ``(0008,103E)``. Of a repeating group it is the first
        group, such as 6000.

    Raises
    ------
    UsageError
        There is no such attribute; the message names near ones.
    """
    keyword = _BY_LOWER.get(name.strip().lower(), "")
    if keyword:
        return (keyword_dict if keyword in keyword_dict else _FIRST_OF_REPEATING)[keyword]
    found = _TAG.fullmatch(name.strip())
    if found:
        return int(found[1] + found[2], 16)
    near = [_BY_LOWER[match] for match in get_close_matches(name.strip().lower(), _BY_LOWER, 3, 0.7)]
    hint = f"did you mean {' or '.join(near)}?" if near else "use a keyword of DICOM PS3.6, or a tag such as 0008103E"
    msg = f"there is no attribute {name!r}; {hint}"
    raise UsageError(msg)


@lru_cache(maxsize=4096)
def json_path(name: str) -> str:
    """JSON path of all values of an attribute in the DICOM JSON model, DICOM PS3.18 F.2.

    Parameters
    ----------
    name : str
        See `tag_of`. An attribute within a sequence is named by way of it, with dots between. A number in brackets picks one item, or one value,
        counted from 1 as items are (DICOM PS3.5 7.5.1); without one it is all of them: ``SegmentSequence[1].SegmentLabel``, ``ImageType[3]``.

    Returns
    -------
    str
        Such as ``$."00620002".Value[0]."00620005".Value[*]``. It always holds a wildcard, so that what follows it gets a list.

    Raises
    ------
    UsageError
        A step names no attribute, or is not well formed.
    """
    path, steps = "$", name.split(".")
    for place, step in enumerate(steps):
        found = _STEP.fullmatch(step.strip())
        if not found or found["number"] == "0":
            msg = f"{name!r} is not the name of an attribute: {step!r} is neither a name nor a name with a number from 1, as in ImageType[3]"
            raise UsageError(msg)
        path += f'."{tag_of(found["name"]):08X}"'
        if not found["number"]:
            path += ".Value[*]"
        elif place + 1 < len(steps):
            path += f".Value[{int(found['number']) - 1}]"
        else:
            path += f".*[{int(found['number']) - 1}]"  # of an element only Value is an array
    return path
