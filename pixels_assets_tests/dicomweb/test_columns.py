"""Columns in memory accept exactly what a condition accepts value by value."""

import datetime as dt
import random

import numpy as np
import pyarrow as pa
import pytest

from pixels_assets.dicomweb.columns import Level, make_column
from pixels_assets.dicomweb.matching import MAX_WILDCARDS, BadQuery, make_condition, parse_path, vr_of
from pixels_assets.dicomweb.model import elements

NAMES = [
    "Doe^Jane",
    "DOE^JANE^^",
    "doe^john",
    "Müller^Jörg",
    "MULLER^JORG",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "=山田^太郎",
    "A^B\\C^D",
    "x[a+]$^(y",
]
TEXTS = {
    "PatientName": (NAMES, [*NAMES, "doe*", "*J?*", "mu*jo*", "山田*", "*田*郎", "c^d", "?oe^*n*", "*[a+]$*", "x[*(y", "a^b"]),
    "PatientID": (
        ["1", "12", "123", "A-1", "a-1", "1\\2", "*", "ä1", "1.2", " 12", "7 "],
        ["1", "12", "7", "2", "1*", "*1", "*2*", "?", "1?*", "A-?", "1\\A-1", "ä*", "*.*", "a*-*1"],
    ),
    "ModalitiesInStudy": (["CT", "MR", "CT\\SR", "PT\\CT", "MG\\SR\\US"], ["CT", "SR", "CT,MR", "CT\\US", "*R", "C*R", "?T", "M*,US", "XX"]),
    "StudyInstanceUID": (["1.2", "1.2.3", "1.10", "2.25.1", "1.2\\3"], ["1.2", "1.2,1.10", "3", "1.2.3\\9", ",".join(f"1.{n}" for n in range(20))]),
    "StudyTime": (
        ["10", "1011", "101112", "101112.5", "235960", "no", "101112.5\\12"],
        ["10", "101112", "10-1011", "-1012", "1011-", "101112.1-101112.6", "12"],
    ),
    "FrameReferenceDateTime": (["2020", "202001", "20200102030405.6", "20200102030405+0100", "never"], ["2020", "2020-2021", "-202001", "20200102-"]),
    "SliceThickness": (["1", "1.0", "1.50", "0.5\\1", "thick"], ["1", "1.5", "0.5", "1\\1.50", "7"]),
}


def condition_of(keyword, query):
    return make_condition(parse_path(keyword), query)


@pytest.mark.parametrize("keyword", TEXTS)
@pytest.mark.parametrize("unique", [False, True])
def test_text_is_matched_as_its_values_are_one_by_one(keyword, unique):
    texts, queries = TEXTS[keyword]
    rows = [None, *texts] if unique else random.Random(1).choices([None, *texts, texts[0]], k=300)
    column = make_column(pa.array(rows[1:] if unique else rows, pa.string()), vr_of(parse_path(keyword)[0]))
    rows = rows[1:] if unique else rows
    for query in queries:
        condition = condition_of(keyword, query)
        expected = [text is not None and condition.accepts_any(text.split("\\")) for text in rows]
        assert column.match(condition).tolist() == expected, query
        listed = column.listed(condition)
        assert listed is None or listed.tolist() == np.flatnonzero(expected).tolist(), query
    assert any(column.match(condition_of(keyword, query)).any() for query in queries)
    every = np.arange(len(rows), dtype=np.int32)
    assert column.take(every) == rows
    tag = parse_path(keyword)[0]
    for always in (True, False):
        assert column.write(every, tag, always=always) == elements(tag, column.vr, rows, always)
    for text in (*texts, "absent", ""):
        assert column.find(text).tolist() == [row for row, value in enumerate(rows) if value == text]


def test_days_and_numbers_are_matched_as_they_are_one_by_one():
    days = [None, dt.date(2020, 2, 29), dt.date(2020, 3, 1), dt.date(1, 1, 1), dt.date(9999, 12, 31), dt.date(1969, 12, 31)]
    column = make_column(pa.array(days, pa.date32()), "DA")
    texts = [None if day is None else f"{day:%Y%m%d}".zfill(8) for day in days]
    assert column.take(np.arange(len(days), dtype=np.int32)) == texts
    for query in (
        "20200229",
        "20200230",
        "20200229-20200301",
        "-20200229",
        "19691231-",
        "0000-",
        "-9999",
        "202002-202003",
        "2020",
        "20200231-20200299",
    ):
        condition = condition_of("StudyDate", query)
        expected = [text is not None and (condition.low or "") <= text <= (condition.high or "A") for text in texts]
        assert column.match(condition).tolist() == expected, query
    for values, kind in (([None, 0, 1, -1, 2**53], pa.int64()), ([None, 0.0, 1.5, -1.0, float("nan")], pa.float64())):
        column = make_column(pa.array(values, kind), "DS")
        for query in ("0", "1.50", "-1", "1\\1.5", "9007199254740992", "1e400"):
            condition = condition_of("SliceThickness", query)
            assert column.match(condition).tolist() == [value == value and condition.accepts(value) for value in values], query
    counts = Level({"NumberOfFrames": make_column(pa.array([3, None, 4]), "IS")}, 3)
    assert counts.numbers("NumberOfFrames", np.array([2, 1, 0], np.int32)).tolist() == [4, 0, 3]


def test_rows_of_few_are_found_in_the_order_of_values_as_they_are_among_all(monkeypatch):
    rng = random.Random(4)
    days = sorted((rng.choice([None, *(dt.date(2020, 1, 1) + dt.timedelta(days=n) for n in range(99))]) for _ in range(4000)), key=str)
    days = [day for day in reversed(days) if day] + [None] * days.count(None)
    texts = {
        "PatientID": [rng.choice([None, *(f"P{number}é" for number in range(1500))]) for _ in range(4000)],
        "StudyInstanceUID": [f"1.2.{number}" for number in rng.sample(range(9000), 4000)],
        "ModalitiesInStudy": [rng.choice(["CT", "MR", "CT\\SR"]) for _ in range(4000)],
    }
    columns = {name: make_column(pa.array(values), vr_of(parse_path(name)[0])) for name, values in texts.items()}
    level = Level({**columns, "StudyDate": make_column(pa.array(days, pa.date32()), "DA")}, 4000)
    queries = [
        ("PatientID", "P7é", "P8é\\P700é\\P", "P", "P1499é", "Z\udcff"),
        ("StudyInstanceUID", texts["StudyInstanceUID"][5], ",".join(texts["StudyInstanceUID"][9:40]), "1.2.9999999"),
        ("ModalitiesInStudy", "SR", "CT,MR"),
        ("StudyDate", "20200103", "20200110-20200131", "20200301-", "-20200205", "19990101", "20210101-", "20200231-20200229", "-"),
    ]
    named = [(name, make_condition(parse_path(name), value)) for name, *values in queries for value in values if value != "-"]
    assert level.rows([]) is None
    monkeypatch.setattr("pixels_assets.dicomweb.columns._QUICK_VALUES", 1000)
    assert not level.is_quick(named[:1])
    for few in (65_536, 2):
        monkeypatch.setattr("pixels_assets.dicomweb.columns._MOST_LISTED", few)
        for one in named:
            for conditions in ([one], [one, rng.choice(named)], [rng.choice(named), one, rng.choice(named)]):
                expected = np.flatnonzero(np.logical_and.reduce([level.columns[name].match(condition) for name, condition in conditions]))
                assert level.rows(conditions).tolist() == expected.tolist(), conditions
    monkeypatch.undo()
    assert level.is_quick(named)


def test_what_is_written_is_the_same_whether_it_was_kept_or_not(monkeypatch):
    monkeypatch.setattr("pixels_assets.dicomweb.columns._MOST_WRITTEN", 5)
    rng = random.Random(6)
    for values, vr in (([None, *"abcde"], "LO"), ([None, *range(40)], "IS"), ([None, dt.date(2020, 1, 1), dt.date(1, 2, 3)], "DA"), ([None], "SH")):
        column = make_column(pa.array([rng.choice(values) for _ in range(200)], pa.date32() if vr == "DA" else None), vr)
        for _ in range(30):
            rows = np.array([rng.randrange(200) for _ in range(rng.randrange(6))], np.int32)
            assert column.write(rows, 0x00100020, always=True) == elements(0x00100020, vr, column.take(rows), always=True)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 1, 0, 2], [0, 0, 2, 2], [], [1, 1, 1, 2, 3, 0], [2]])
def test_a_column_of_the_rows_of_another_is_like_one_of_their_values(rows):
    uids = ["1.2.9", "1.2.1", "1.3", "1.2.10"]
    every = make_column(pa.array(uids), "UI")
    assert every.match(condition_of("StudyInstanceUID", "1.3")).tolist() == [False, False, True, False]
    column, plain = every.of_rows(np.array(rows, np.int32)), make_column(pa.array([uids[row] for row in rows], pa.string()), "UI")
    for query in (*uids, "1.2.1,1.3", "1.2"):
        condition = condition_of("StudyInstanceUID", query)
        assert column.match(condition).tolist() == plain.match(condition).tolist()
        assert (
            Level({"StudyInstanceUID": column}, len(rows)).rows([("StudyInstanceUID", condition)]).tolist()
            == np.flatnonzero(column.match(condition)).tolist()
        )
        assert column.find(query).tolist() == plain.find(query).tolist()
    assert column.take(np.arange(len(rows), dtype=np.int32)) == [uids[row] for row in rows]


@pytest.mark.parametrize("vr", ["LO", "PN", "UI"])
def test_pieces_of_text_are_found_within_texts_and_not_across_them(vr):
    rng = random.Random(8)
    texts = sorted({"".join(rng.choices("abcdefghijklmnopéß1", k=rng.randrange(1, 9))) for _ in range(900)} | {"x", "xyz", "zx", "y", "yzx"})
    column = make_column(pa.array(texts), vr)
    pieces = ["x", "xy", "yzx", "xyzx", "éß", "q", "a", *(rng.choice(texts)[rng.randrange(3) :][: rng.randrange(1, 6)] or "b" for _ in range(300))]
    assert vr != "PN" or column.match(make_condition((0x00100010,), "*=")).all()
    for piece in pieces:
        for query in (f"*{piece}*", f"*{piece}?*", f"?*{piece}*"):
            condition = make_condition((0x00100010 if vr == "PN" else 0x00100020,), query)
            assert column.match(condition).tolist() == [condition.accepts(text) for text in texts], query


def test_patterns_are_bounded():
    column = make_column(pa.array(["a" * 64, "b"]), "LO")
    assert column.match(condition_of("PatientID", "?" * 64)).tolist() == [True, False]
    assert not column.match(condition_of("PatientID", "?" * MAX_WILDCARDS)).any()
    assert column.match(condition_of("PatientID", "a*" * (MAX_WILDCARDS // 2))).tolist() == [False, False]
    with pytest.raises(BadQuery, match="wildcards"):
        condition_of("PatientID", "?" * (MAX_WILDCARDS + 1))
