"""Addresses map one to one to byte streams, whatever the names are made of."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pixels_assets.intake.objects import escape_name, file_address, member_address, os_path, row_id, split_address, unescape_name

# Pieces that look like the syntax of addresses, among arbitrary bytes.
PIECES = [*rb"! / ~ 2 a !/ !~2 !~ \ \x \x21 \x5c x21".split(), b"\xff", b"\xc3", b"\xc3\xa9", b"\xed\xb2\x80", b"\n", b" "]
NAMES = st.one_of(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), st.binary(max_size=24))
PATHS = NAMES.map(lambda name: b"/" + name.replace(b"\0", b""))
MEMBERS = st.lists(st.tuples(NAMES, st.integers(1, 12)), max_size=4)


def compose(path, members):
    address = file_address(path)
    for name, occurrence in members:
        address = member_address(address, name, occurrence)
    return address


@given(NAMES)
@example(b"\\x5cx5c")
@example(b"\\\xff")
@example(b"a!\n")
@example(b"!~2\n")
def test_a_name_of_any_bytes_comes_back_from_its_escaped_text(name):
    assert unescape_name(escape_name(name)) == name


@given(NAMES)
def test_an_escaped_name_is_utf8_without_nul_and_without_the_syntax_of_addresses(name):
    text = escape_name(name)
    text.encode("utf-8")
    assert "\0" not in text
    assert "!/" not in text
    assert "!~" not in text


@given(NAMES, NAMES)
def test_escaping_two_path_components_is_escaping_each_with_its_separator(first, second):
    first, second = first.replace(b"/", b""), second.replace(b"/", b"")
    assert escape_name(first + b"/" + second) == escape_name(first + b"/") + escape_name(second)


@given(st.text(st.characters(exclude_characters="\0\\!", exclude_categories=["Cs"])))
def test_a_name_without_backslash_or_exclamation_mark_stays_as_it_is(text):
    assert escape_name(text.encode()) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain.dcm", "plain.dcm"),
        (b"new\nline and 'quote'", "new\nline and 'quote'"),
        (b"C:\\x\\y", "C:\\x\\y"),
        (b"caf\xe9", "caf\\xe9"),
        (b"\\xe9", "\\x5cxe9"),
        (b"nul\0", "nul\\x00"),
        (b"a!/b", "a\\x21/b"),
        (b"a!~2", "a\\x21~2"),
        (b"really!", "really!"),
        ("e\u0301".encode(), "e\u0301"),
    ],
)
def test_only_what_would_be_ambiguous_is_escaped(name, text):
    assert escape_name(name) == text


@given(PATHS)
def test_the_address_of_a_file_opens_that_file(path):
    assert os_path(file_address(path)) == path


def test_text_and_bytes_paths_have_one_address(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9!"
    assert file_address(raw) == file_address(os.fsdecode(raw))


@given(PATHS, MEMBERS)
def test_an_address_is_taken_apart_into_what_it_was_made_of(path, members):
    file, found = split_address(compose(path, members))
    assert unescape_name(file) == path
    assert [(unescape_name(name), occurrence) for name, occurrence in found] == members


@given(PATHS, MEMBERS)
def test_the_outermost_file_of_any_address_can_be_opened(path, members):
    assert os_path(compose(path, members)) == path


@given(PATHS, MEMBERS, PATHS, MEMBERS)
@example(b"/a!", [(b"b", 1)], b"/a", [(b"!/b", 1)])
@example(b"/a", [(b"b!~2", 1)], b"/a", [(b"b", 2)])
@example(b"/a", [(b"", 2)], b"/a", [(b"!~2", 1)])
@example(b"/a", [(b"b/c", 1)], b"/a", [(b"b", 1), (b"c", 1)])
def test_two_byte_streams_never_share_an_address(path, members, other_path, other_members):
    assert (compose(path, members) == compose(other_path, other_members)) == ((path, members) == (other_path, other_members))


def test_a_member_name_given_as_text_has_the_address_of_its_bytes():
    assert member_address("/a.tar", "caf\udce9") == member_address("/a.tar", b"caf\xe9") == "/a.tar!/caf\\xe9"


@given(PATHS)
def test_a_row_id_fits_a_signed_64_bit_column(path):
    assert 0 <= row_id(file_address(path)) < 2**63


def test_a_row_id_is_the_same_on_every_machine_and_in_every_release():
    assert row_id("/in/a.zip!/b.dcm") == 7_526_537_725_198_081_568
