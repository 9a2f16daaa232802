"""The walk of a source: complete, in one order, resumable anywhere, and safe among links, devices and folders that cannot be read."""

# Names that are not text are bytes, which pathlib does not take.

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixels_assets.errors import SourceMissingError, SourceVanishedError
from pixels_assets.intake.listing import Listing, Waiting, listing_key
from pixels_assets.intake.objects import SourceFile, Status, file_address, os_path

ODD_NAMES = [
    b"new\nline",
    b"'single' \"double\"",
    b"x" * 255,
    b"undecodable \xff\xfe",
    b"-rf",
    b"   ",
    b"!",
    b"bang!",
    b"a!~2",
    b"\\xe9",
    b"\xe9",
    b"100%",
    b".hidden",
    b"trailing.",
    "Ünïcode".encode(),
    "U\u0308 decomposed".encode(),
    "日本語".encode(),
    "😀".encode(),
    b"\x01control\x7f",
    b"semi;colon&$(shell)`x`",
]
SIBLINGS = [b"a", b"a!", b"a-b", b"a.b", b"a0", b"A", b"a b", b"a\x01", b"ab", b"\xff", b"\xc3\xa9", b"~", b"z!", b"z"]


def make(path, content=b"x"):
    """Write a file, given by bytes or pathlib path, and the folders above it."""
    path = os.fsencode(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    return path


def paths(listing):
    return [found.path for found in listing]


@pytest.fixture
def tree(tmp_path):
    """Folders whose names sort differently from whole paths, nested three deep, with files and special files between."""
    root = os.fsencode(tmp_path / "source")
    for first in SIBLINGS[:9]:
        for second in SIBLINGS[3:]:
            make(os.path.join(root, first, second))
    for name in SIBLINGS:
        make(os.path.join(root, b"b", name, b"deep!", name))
        make(os.path.join(root, b"file " + name))
    os.makedirs(os.path.join(root, b"empty", b"emptier"))
    os.symlink(b"a", os.path.join(root, b"b", b"link to folder"))
    os.symlink(b"nowhere", os.path.join(root, b"link to nowhere"))
    os.mkfifo(os.path.join(root, b"a", b"pipe"))
    return root


def test_files_of_any_name_are_found_and_their_addresses_open_them(tmp_path):
    for number, name in enumerate(ODD_NAMES):
        make(os.fsencode(tmp_path) + b"/" + name, b"%d" % number)
    found = {Path(os.fsdecode(os_path(path))).read_bytes(): os.path.basename(os_path(path)) for path in paths(Listing(tmp_path))}
    assert found == {b"%d" % number: name for number, name in enumerate(ODD_NAMES)}


def test_files_in_folders_of_any_name_are_found(tmp_path):
    made = {make(os.fsencode(tmp_path) + b"/" + name + b"/" + name) for name in ODD_NAMES}
    assert {os_path(path) for path in paths(Listing(tmp_path))} == made


def test_a_file_is_listed_with_its_size_time_and_source(tmp_path):
    path = make(tmp_path / "in" / "a.dcm", b"12345")
    os.utime(path, ns=(0, 1_234_567_890_123_456_789))
    assert list(Listing(tmp_path)) == [SourceFile(file_address(path), 5, 1_234_567_890_123_456_789, file_address(tmp_path))]


def test_the_order_of_the_walk_is_the_order_of_the_listing_key(tree):
    found = paths(Listing(tree))
    assert found == sorted(found, key=listing_key)
    assert len(found) == len(set(found)) == sum(len(files) for _, _, files in os.walk(tree)) - 2  # one link, one pipe


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=6))
def test_sorting_by_the_listing_key_is_sorting_by_its_utf8_bytes_and_by_components(texts):
    ordered = sorted(texts, key=listing_key)
    assert ordered == sorted(texts, key=lambda text: listing_key(text).encode())
    if not any("\0" in text for text in texts):
        assert ordered == sorted(texts, key=lambda text: text.split("/"))


def test_a_walk_resumed_after_any_of_its_addresses_yields_the_rest(tree):
    whole = paths(Listing(tree))
    for position, path in enumerate(whole):
        assert paths(Listing(tree, after=path)) == whole[position + 1 :]


def test_a_walk_resumed_after_any_string_yields_what_sorts_after_it(tree):
    whole = paths(Listing(tree))
    for path in whole:
        for after in (path[:-1], path + "!", path + "/", path + "/gone", path + "\0", os.path.dirname(path), path[: len(path) // 2], "\ud800", "~"):
            expected = [other for other in whole if listing_key(other) > listing_key(after)]
            assert paths(Listing(tree, after=after)) == expected, repr(after)


def test_the_counts_of_a_walk_in_parts_add_up_to_those_of_the_whole(tree):
    complete = Listing(tree)
    whole = list(complete)
    assert complete.counts.files == len(whole)
    assert complete.counts.bytes == len(whole)
    assert complete.counts.skipped == {"symlink": 2, "fifo": 1}
    for position in range(0, len(whole), 7):
        first, second = Listing(tree), Listing(tree, after=whole[position].path)
        walk = iter(first)
        for _ in range(position + 1):
            next(walk)
        list(second)
        for part in ("files", "bytes", "folders"):
            assert getattr(first.counts, part) + getattr(second.counts, part) == getattr(complete.counts, part)
        assert first.counts.skipped + second.counts.skipped == complete.counts.skipped


def test_resuming_does_not_open_folders_that_lie_before_the_position(tmp_path):
    make(tmp_path / "a" / "x")
    make(tmp_path / "b" / "x")
    listing = Listing(tmp_path, after=file_address(tmp_path / "a" / "x"))
    assert paths(listing) == [file_address(tmp_path / "b" / "x")]
    assert listing.counts.folders == 1


def test_every_iteration_starts_again_at_the_position(tree):
    listing = Listing(tree)
    assert paths(listing) == paths(listing)
    assert listing.counts.files == len(paths(listing))


def test_links_are_neither_followed_nor_listed(tmp_path):
    make(tmp_path / "outside" / "secret")
    source = tmp_path / "source"
    target = make(source / "folder" / "file")
    (source / "to-file").symlink_to(target.decode())
    (source / "to-folder").symlink_to(source / "folder")
    (source / "to-outside").symlink_to(tmp_path / "outside")
    (source / "to-nothing").symlink_to("nothing")
    (source / "folder" / "to-parent").symlink_to("..")
    (source / "to-itself").symlink_to("to-itself")
    listing = Listing(source)
    assert paths(listing) == [file_address(target)]
    assert listing.counts.skipped == {"symlink": 6}


def test_the_source_itself_may_be_a_link_and_addresses_name_what_it_points_to(tmp_path):
    path = make(tmp_path / "real" / "file")
    (tmp_path / "link").symlink_to("real")
    listing = Listing(tmp_path / "link")
    assert listing.source == file_address(tmp_path / "real")
    assert paths(listing) == [file_address(path)]


def test_pipes_and_sockets_are_counted_and_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")  # opening it would block the test for ever
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        listing = Listing(tmp_path)
        assert paths(listing) == []
    assert listing.counts.skipped == {"fifo": 1, "socket": 1}


def test_devices_are_counted_and_never_opened():
    listing = Listing("/dev")
    assert file_address("/dev/zero") not in paths(listing)
    assert listing.counts.skipped["device"] > 0


def test_an_empty_folder_has_no_files(tmp_path):
    listing = Listing(tmp_path)
    assert list(listing) == []
    assert listing.counts.folders == 1


def test_excluded_folders_are_not_entered(tmp_path):
    kept = make(tmp_path / "var-not" / "file")
    make(tmp_path / "var" / "lake" / "part.parquet")
    make(tmp_path / "lake!" / "part.parquet")
    exclude = [file_address(tmp_path / "var"), file_address(tmp_path / "lake!"), file_address(tmp_path / "not there")]
    assert paths(Listing(tmp_path, exclude=exclude)) == [file_address(kept)]


def test_a_source_whose_name_ends_with_an_exclamation_mark_has_addresses_that_begin_with_its_prefix(tmp_path):
    path = make(tmp_path / "source!" / "file")
    listing = Listing(tmp_path / "source!")
    assert listing.prefix + "file" == file_address(path)
    assert paths(listing) == [file_address(path)]
    assert paths(Listing(tmp_path / "source!", after=listing.source)) == [file_address(path)]


@pytest.mark.parametrize("name", ["a.part", "b.TMP", "c.dcm.Part", ".tmp"])
def test_files_with_a_name_for_unfinished_ones_wait_without_end(tmp_path, name):
    path = make(tmp_path / name)
    listing = Listing(tmp_path)
    assert list(listing) == [Waiting(file_address(path), None)]
    assert (listing.counts.waiting, listing.counts.files) == (1, 0)


@pytest.mark.parametrize("name", ["part", "a.part.dcm", "tmp", "x.tmpl"])
def test_files_whose_name_only_resembles_an_unfinished_one_are_taken(tmp_path, name):
    make(tmp_path / name)
    make(tmp_path / "folder.tmp" / name)
    listing = Listing(tmp_path)
    assert [type(found) for found in listing] == [SourceFile, SourceFile]


def test_a_young_file_waits_until_the_quiet_period_is_over(tmp_path):
    young, old, future = (make(tmp_path / name) for name in ("young", "old", "future"))
    now = time.time_ns()
    hour = 3600 * 10**9
    os.utime(young, ns=(now, now))
    os.utime(old, ns=(now, now - 2 * hour))
    os.utime(future, ns=(now, now + hour))
    listing = Listing(tmp_path, quiet_seconds=3600)
    found = {item.path: item for item in listing}
    assert found[file_address(young)] == Waiting(file_address(young), now + hour)
    assert isinstance(found[file_address(old)], SourceFile)
    assert isinstance(found[file_address(future)], SourceFile)
    assert (listing.counts.waiting, listing.counts.files) == (1, 2)


@pytest.mark.parametrize("source", ["missing", "file", "", "nul\0", "loop"])
def test_a_source_that_is_no_folder_is_an_error_that_names_it(tmp_path, source):
    make(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SourceMissingError, match=r"empty path" if not source else repr(source).strip("'").replace("\\", "\\\\")):
        Listing(tmp_path / source if source else "")


def test_a_source_that_goes_away_during_the_walk_ends_it_with_an_error(tmp_path):
    source = tmp_path / "source"
    for name in "abc":
        make(source / name / "file")
    walk = iter(Listing(source))
    next(walk)
    shutil.rmtree(source)
    with pytest.raises(SourceVanishedError, match="went away"):
        list(walk)


def test_a_source_that_is_replaced_during_the_walk_is_not_taken_for_one_without_files(tmp_path):
    source = tmp_path / "source"
    make(source / "a")
    walk = iter(Listing(source))
    next(walk)
    source.rename(tmp_path / "elsewhere")
    source.mkdir()
    with pytest.raises(SourceVanishedError, match="replaced"):
        list(walk)


def test_a_file_that_goes_away_during_the_walk_is_left_out(tmp_path):
    first, second, third = (make(tmp_path / name) for name in "abc")
    walk = iter(Listing(tmp_path))
    assert next(walk).path == file_address(first)
    os.unlink(second)
    assert paths(walk) == [file_address(third)]


def test_a_file_that_becomes_a_link_or_pipe_during_the_walk_is_skipped(tmp_path):
    make(tmp_path / "a")
    second, third = make(tmp_path / "b"), make(tmp_path / "c")
    listing = Listing(tmp_path)
    walk = iter(listing)
    next(walk)
    os.unlink(second)
    os.symlink("/etc/passwd", second)
    os.unlink(third)
    os.mkfifo(third)
    assert paths(walk) == []
    assert listing.counts.skipped == {"symlink": 1, "fifo": 1}


@pytest.mark.parametrize("replacement", ["nothing", "link", "file"])
def test_a_folder_that_goes_away_during_the_walk_becomes_a_row(tmp_path, replacement):
    make(tmp_path / "outside" / "secret")
    source = tmp_path / "source"
    make(source / "a")
    make(source / "b" / "file")
    walk = iter(Listing(source))
    next(walk)
    shutil.rmtree(source / "b")
    if replacement == "link":
        (source / "b").symlink_to(tmp_path / "outside")
    elif replacement == "file":
        make(source / "b")
    (row,) = walk
    assert row.path == file_address(source / "b") + "/"
    assert (row.failure.status, row.failure.code) == (Status.UNREADABLE, "folder_vanished")


def test_a_folder_deeper_than_the_system_can_open_becomes_a_row(tmp_path):
    name = "d" * 200
    top = os.open(tmp_path, os.O_RDONLY)
    folder = top
    for _ in range(25):  # 5,000 bytes: more than any PATH_MAX
        os.mkdir(name, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    make(tmp_path / "e")
    row, other = Listing(tmp_path)
    assert row.path.endswith("/" + name + "/")
    assert (row.length, row.failure.status, row.failure.code) == (0, Status.UNREADABLE, "path_too_long")
    assert other.path == file_address(tmp_path / "e")
    assert paths(Listing(tmp_path, after=row.path)) == [other.path]


def test_a_file_whose_path_is_too_long_becomes_a_row(tmp_path):
    # The last folder's path just fits, its file's does not.
    limit = os.pathconf(tmp_path, "PC_PATH_MAX")
    folder = os.fsencode(tmp_path)
    while len(folder) < limit - 100:
        folder += b"/" + b"d" * min(200, limit - 12 - len(folder))
        os.mkdir(folder)
    handle = os.open(folder, os.O_RDONLY)
    os.close(os.open("f" * 200, os.O_CREAT | os.O_WRONLY, dir_fd=handle))
    os.close(handle)
    (row,) = Listing(tmp_path)
    assert os_path(row.path) == folder + b"/" + b"f" * 200
    assert (row.failure.status, row.failure.code) == (Status.UNREADABLE, "path_too_long")


def test_a_tree_as_deep_as_paths_can_be_is_walked(tmp_path):
    folders = [os.fsencode(tmp_path)]
    while len(folders) < 1900:
        folders.append(folders[-1] + b"/d")
        os.mkdir(folders[-1])
    made = make(folders[-1] + b"/f")
    listing = Listing(tmp_path)
    try:
        assert paths(listing) == [file_address(made)]
        assert listing.counts.folders == 1900
    finally:  # deeper than shutil.rmtree, and so pytest, can remove
        os.unlink(made)
        while len(folders) > 1:
            os.rmdir(folders.pop())


WALK = """
import os, sys
from pixels_assets.intake.listing import Listing
if os.geteuid() == 0:  # root may read everything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for found in Listing(sys.argv[1]):
    print(found.path, found.length, found.failure and (str(found.failure.status), found.failure.code), sep="|")
"""


def walk_without_privileges(source):
    """Walk in a process that file permissions bind; return what it prints to stdout and stderr."""
    result = subprocess.run([sys.executable, "-c", WALK, str(source)], capture_output=True, text=True, check=False)
    return result.stdout.splitlines(), result.stderr


@pytest.fixture
def shared_folder():
    """A folder that every user can reach; `tmp_path` lies below one that is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        yield folder
        for path in folder.iterdir():
            path.chmod(0o755)


def test_a_folder_without_permission_becomes_one_row_and_the_walk_goes_on(shared_folder):
    make(shared_folder / "closed" / "file")
    make(shared_folder / "open" / "file", b"123")
    (shared_folder / "closed").chmod(0)
    lines, errors = walk_without_privileges(shared_folder)
    assert errors == ""
    assert lines == [f"{shared_folder}/closed/|0|('unreadable', 'permission_denied')", f"{shared_folder}/open/file|3|None"]


def test_files_of_a_folder_that_may_be_listed_but_not_entered_become_rows(shared_folder):
    make(shared_folder / "half" / "a")
    make(shared_folder / "half" / "b" / "c")
    (shared_folder / "half").chmod(0o444)
    lines, errors = walk_without_privileges(shared_folder)
    assert errors == ""
    failure = "0|('unreadable', 'permission_denied')"
    assert lines == [f"{shared_folder}/half/a|{failure}", f"{shared_folder}/half/b/|{failure}"]


def test_a_source_without_permission_is_an_error(shared_folder):
    (shared_folder / "closed").mkdir(mode=0)
    lines, errors = walk_without_privileges(shared_folder / "closed")
    assert lines == []
    assert "SourceMissingError" in errors
    assert "Permission denied" in errors


def test_a_flat_folder_of_100_000_files_is_listed_in_order(tmp_path):
    for number in range(100_000):
        os.mknod(tmp_path / f"{number:06}.dcm")
    found = paths(Listing(tmp_path))
    assert found == [f"{tmp_path}/{number:06}.dcm" for number in range(100_000)]
    assert paths(Listing(tmp_path, after=found[-3])) == found[-2:]
