"""What was odd about one object, as short stable words.

Holds the collection and the words for pydicom's own warnings. Must not hold, log or show an attribute's value.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config

MAX_NOTES = 100

# How pydicom 3.0 begins its warnings, and what a row says instead. The texts themselves may quote values.
_CHARSET_UNKNOWN = ("Unknown encoding", "Incorrect value for Specific Character Set", "Value '")
_CHARSET_WRONG = ("Failed to decode byte string", "Found unknown escape sequence")


class Notes:
    """Ordered set of warnings about one object, of bounded size.

    Parameters
    ----------
    caught : list of warnings.WarningMessage
        Where Python collects the warnings that pydicom emits.
    """

    def __init__(self, caught: list[warnings.WarningMessage]) -> None:
        self.caught = caught
        self._words: dict[str, None] = {}

    def add(self, word: str, tag: int | None = None) -> None:
        """Note something once; beyond 100 notes only ``more_warnings`` is added."""
        if tag is not None:
            word = f"{word}: {tag_text(tag)}"
        if len(self._words) < MAX_NOTES:
            self._words[word] = None
        elif word not in self._words:
            self._words["more_warnings"] = None

    def collect(self, tag: int | None = None) -> None:
        """Turn the warnings that pydicom emitted since the last call into notes on one element."""
        for message in self.caught:
            text = str(message.message)
            if text.startswith(_CHARSET_UNKNOWN):
                self.add("charset_unknown")
            elif text.startswith(_CHARSET_WRONG):
                self.add("charset_wrong")
            elif text.startswith("VR lookup failed"):
                self.add("vr_unknown", tag)
            else:
                self.add("element_odd", tag)
        self.caught.clear()

    def words(self) -> list[str]:
        """All notes, in the order in which they were first made."""
        return list(self._words)


@contextmanager
def listening() -> Iterator[Notes]:
    """Run pydicom quietly and without value validation: its warnings become notes.

    Validation is off because it costs time and changes no value; pydicom's logger is off because its messages may quote values.
    """
    disabled = config.logger.disabled
    with warnings.catch_warnings(record=True) as caught, config.disable_value_validation():
        warnings.simplefilter("always")
        config.logger.disabled = True
        try:
            yield Notes(caught)
        finally:
            config.logger.disabled = disabled


def tag_text(tag: int) -> str:
    """Write a tag the usual way.

    Examples
    --------
    >>> tag_text(0x0019100C)
    '(0019,100C)'
    """
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
