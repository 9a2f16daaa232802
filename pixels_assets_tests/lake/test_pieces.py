"""Rows that come back in pieces are the rows that went in, all rows of a key together, and leave nothing on the disk."""

import random
from collections import Counter
from contextlib import suppress

import polars as pl
import pytest

from pixels_assets.errors import LakeError
from pixels_assets.lake import pieces
from pixels_assets.lake.pieces import Pieces

SCHEMA = pl.Schema({"name": pl.String, "place": pl.String, "number": pl.Int64, "words": pl.List(pl.String), "never": pl.Date})


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(pieces, "ROWS", 20)
    monkeypatch.setattr(pieces, "_BATCH_ROWS", 4)
    monkeypatch.setattr(pieces, "_PARTS", 2)


def some_rows(count, keys, seed=0):
    chance = random.Random(seed)
    return pl.DataFrame(
        [
            {
                "name": None if chance.random() < 0.1 else str(chance.randrange(keys)),
                "place": chance.choice(["", None, "x"]),
                "number": number,
                "words": ["a", None],
            }
            for number in range(count)
        ],
        schema=SCHEMA,
    )


def go_round(folder, key, frames):
    with Pieces(folder, key) as aside:
        for rows in frames:
            aside.add(rows)
        return [piece.collect() for piece in aside]


@pytest.mark.parametrize("key", [["name"], ["name", "place"]])
@pytest.mark.parametrize(("count", "keys"), [(0, 1), (1, 1), (19, 3), (150, 100), (150, 3), (150, 1), (150, 10**6)])
def test_all_rows_come_back_and_no_key_is_in_two_pieces(tmp_path, key, count, keys) -> None:
    rows = some_rows(count, keys)
    found = go_round(tmp_path / "aside", key, [rows[start : start + 33] for start in range(0, max(count, 1), 33)])
    assert pl.concat([rows.clear(), *found]).sort("number").equals(rows)
    owners = Counter(owner for piece in found for owner in piece.select(key).with_columns(pl.all().fill_null("")).unique().rows())
    assert set(owners.values()) <= {1}
    assert list(tmp_path.iterdir()) == []


def test_pieces_have_about_the_rows_that_they_should(tmp_path) -> None:
    found = go_round(tmp_path / "aside", ["name"], some_rows(200, 100).iter_slices(7))
    assert 15 <= len(found) <= 30
    assert max(map(len, found)) <= 40


def test_rows_that_are_heavy_make_smaller_pieces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pieces, "BYTES", 2000)
    heavy = some_rows(60, 200).with_columns(words=pl.lit(["x" * 500]))
    found = go_round(tmp_path / "aside", ["name"], heavy.iter_slices(5))
    assert len(found) > 10
    assert sum(map(len, found)) == 60


def test_rows_that_are_heavy_are_read_a_few_at_a_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pieces, "BYTES", 100_000)
    monkeypatch.setattr(pieces, "_BATCH_BYTES", 10_000)
    heavy = pl.DataFrame({"name": [str(number % 7) for number in range(60)], "text": ["x" * 4_000] * 60})
    with Pieces(tmp_path / "aside", ["name"]) as aside:
        aside.add(heavy)
        assert sum(piece.collect().height for piece in aside) == 60
        assert max(weight for run in aside._runs for weight in run.weights) * 100_000 < 20_000


def test_few_rows_never_touch_the_disk(tmp_path) -> None:
    with Pieces(tmp_path / "aside", ["name"]) as aside:
        aside.add(some_rows(19, 5))
        assert len(list(aside)) == 1
        assert not (tmp_path / "aside").exists()
        aside.add(some_rows(1, 5))
        assert len(list((tmp_path / "aside").iterdir())) == 1


def test_the_rows_of_one_key_may_be_more_than_a_piece(tmp_path) -> None:
    rows = pl.concat([some_rows(100, 100), some_rows(100, 100, seed=1).with_columns(name=pl.lit("50"))])
    found = go_round(tmp_path / "aside", ["name"], rows.iter_slices(33))
    assert pl.concat(found).sort("number", "name").equals(rows.sort("number", "name"))
    assert sum("50" in piece["name"] for piece in found) == 1


def test_an_error_leaves_nothing_behind(tmp_path) -> None:
    with suppress(KeyboardInterrupt), Pieces(tmp_path / "aside", ["name"]) as aside:
        aside.add(some_rows(100, 5))
        assert (tmp_path / "aside").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with Pieces(tmp_path / "file" / "aside", ["name"]) as aside, pytest.raises(LakeError, match="put rows aside"):
        aside.add(some_rows(100, 5))
