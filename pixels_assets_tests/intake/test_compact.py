"""The compact map."""

import random

from pixels_assets.intake.compact import NameMap


def test_names_keep_their_numbers_while_the_map_grows():
    names = [str(number).encode() for number in range(5000)]
    seen = NameMap()
    for number, name in enumerate(names, start=1):
        assert seen.get(name) == 0
        seen.put(name, number)
    random.Random(0).shuffle(names)
    assert all(seen.get(name) == int(name) + 1 for name in names)


def test_a_name_is_counted_apart_from_others():
    seen = NameMap()
    assert [seen.count(name) for name in (b"a", b"b", b"a", b"", b"a", b"")] == [1, 1, 2, 1, 3, 2]
