"""What the address of an object says: its path below the source, its extension, its words. Pure text; opens nothing."""

import re

from pixels_assets.intake.objects import MEMBER, folder_prefix

_EXTENSION = re.compile(r"\.(\w+)(?:!~[0-9]+)?\Z")
# From the beginning of a word only: a name of a million letters would be searched from each of them.
_TAG_END = re.compile(r"(?<![0-9a-zA-Z])([0-9a-zA-Z]+)[_./:@]")
_PATH_TAGS = 5


def relative_path(path: str, source: str) -> str:
    """Path of an object below its source folder."""
    return path.removeprefix(folder_prefix(source))


def extension(path: str) -> str:
    """Letters, digits and underscores after the last dot of the name, case kept; '' when there is none. Says nothing about the content."""
    found = _EXTENSION.search(path)
    return found.group(1) if found else ""


def path_tags(relative: str) -> list[str]:
    """Return the last five words of a relative path, cut after every run of letters and digits that a ``_ . / : @`` follows."""
    return _words(relative.replace(MEMBER, "/"))[-_PATH_TAGS:]


def strict_path_tags(path: str) -> list[str]:
    """Return the tags that dbx.pixels gives a path: its last five words, and none at all when there are fewer; a comma separates words, too.

    Examples
    --------
    >>> strict_path_tags("/benigns/patient0007/0007.LEFT_MLO.dcm")
    ['patient0007', '0007', 'LEFT', 'MLO', 'dcm']
    >>> strict_path_tags("/a.dcm")
    []
    """
    words = _words(path)
    return words[-_PATH_TAGS:] if len(words) >= _PATH_TAGS else []


def _words(path: str) -> list[str]:
    return _TAG_END.sub(r"\1,", path).split(",")
