"""Extracting members below one folder and nowhere else."""

import io
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import warnings
import zipfile
from pathlib import Path

import pytest

from pixels_assets.errors import LakeError
from pixels_assets.intake.archives import walk
from pixels_assets.intake.extraction import Extractor
from pixels_assets.intake.objects import SourceFile, file_address
from pixels_assets.settings import Limits


def zip_of(path, names):
    """A ZIP whose members, in this order, hold their own number."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for number, name in enumerate(names):
            archive.writestr(zipfile.ZipInfo(name, (2020, 2, 3, 4, 5, 6)), f"member {number}")
    return path


def objects(path):
    status = path.stat()
    return walk(SourceFile(file_address(path), status.st_size, status.st_mtime_ns, "/"), Limits())


def extracted(path, target):
    """Extract all leaf members; return the written files with their contents, in the walk's order."""
    extractor = Extractor(target)
    files = []
    for found in objects(path):
        if found.depth and found.failure is None and found.file_type not in {"zip", "tar", "gzip", "bzip2", "xz"}:
            data = found.stream.read()
            found.stream.seek(0)
            file = extractor.extract(found)
            assert found.stream.tell() == 0
            assert file.read_bytes() == data
            files.append((file, data))
    for file, data in files:  # nothing was overwritten later
        assert file.read_bytes() == data
    assert len({str(file).casefold() for file, _ in files}) == len(files)
    assert {file for file in target.rglob("*") if not file.is_dir()} >= {file for file, _ in files}
    assert not list(target.glob(".*.part"))
    return [file for file, _ in files]


def below(files, target):
    """Paths below the archive's folder."""
    return [file.relative_to(target).as_posix().partition("/")[2] for file in files]


def test_members_keep_their_paths_below_a_folder_named_after_the_archive(tmp_path):
    path = zip_of(tmp_path / "scans.zip", ["a/b/ct.dcm", "a/IM_0001", "top"])
    files = extracted(path, tmp_path / "out")
    assert below(files, tmp_path / "out") == ["a/b/ct.dcm", "a/IM_0001", "top"]
    folder = files[0].relative_to(tmp_path / "out").parts[0]
    assert re.fullmatch(r"scans-[0-9a-f]{8}", folder)
    assert files[0].stat().st_mtime == 1580702706


def test_archives_of_one_name_have_folders_of_their_own(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    first = extracted(zip_of(tmp_path / "a" / "x.zip", ["m"]), tmp_path / "out")
    second = extracted(zip_of(tmp_path / "b" / "x.zip", ["m"]), tmp_path / "out")
    assert first[0].parent != second[0].parent
    assert first[0].parent.parent == second[0].parent.parent


def test_archives_in_archives_become_folders(tmp_path):
    inner = zip_of(tmp_path / "inner.zip", ["x/y.dcm"]).read_bytes()
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("d/inner.zip", inner)
        archive.writestr("e/inner.zip", inner)
    files = below(extracted(tmp_path / "outer.zip", tmp_path / "out"), tmp_path / "out")
    assert [re.sub("[0-9a-f]{8}", "#", name) for name in files] == ["d/inner-#/x/y.dcm", "e/inner-#/x/y.dcm"]


HOSTILE = [
    "../up.dcm",
    "../../../../../../tmp/pixels_escape",
    "/etc/passwd",
    "//etc//passwd",
    "a/../../b",
    "..",
    ".",
    "/",
    "a/./b",
    "nul\0name",
    "x" * 300 + ".dcm",
    "é" * 200 + ".dcm",
    "d/" * 3000 + "deep.dcm",
    "-rf",
    "new\nline",
    "back\\slash",
    "C:\\Windows\\x",
    "~root",
]


def test_hostile_names_stay_inside_and_are_marked(tmp_path):
    before = set(tmp_path.parent.iterdir())
    with tarfile.open(tmp_path / "evil.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for number, name in enumerate(HOSTILE):
            info = tarfile.TarInfo("short")
            info.pax_headers = {"path": name}
            data = b"member %d" % number
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    target = tmp_path / "out"
    files = extracted(tmp_path / "evil.tar", target)
    assert len(files) == len(HOSTILE)
    for file in files:
        assert file.resolve().is_relative_to(target.resolve())
        assert all(len(os.fsencode(part)) <= 255 for part in file.parts)
    assert {file.name for file in tmp_path.iterdir()} == {"evil.tar", "out"}
    assert set(tmp_path.parent.iterdir()) == before
    assert not Path("/tmp/pixels_escape").exists()
    marked = [bool(re.search(r"~[0-9a-f]{8}(\.|$)", file.name)) for file in files]
    assert sum(marked) == len(files) - 5  # the last five need no change


def test_names_that_clash_all_get_files(tmp_path):
    names = ["A.dcm", "a.dcm", "a.dcm", "x", "x/y", "p/q", "p", "Dir/f", "dir/f", "dir/./f"]
    files = extracted(zip_of(tmp_path / "clash.zip", names), tmp_path / "out")
    got = [re.sub("~[0-9a-f]{8}", "~#", name) for name in below(files, tmp_path / "out")]
    assert got == ["A.dcm", "a~#.dcm", "a~#.dcm", "x", "x~#/y", "p/q", "p~#", "Dir/f", "dir/f~#", "dir/f~#"]


def test_the_same_member_gets_the_same_path_again(tmp_path):
    path = zip_of(tmp_path / "again.zip", ["A.dcm", "a.dcm", "x", "x/y", "p/q", "p", "../up"])
    first = extracted(path, tmp_path / "out")
    assert extracted(path, tmp_path / "out") == first
    assert extracted(path, tmp_path / "elsewhere") == [tmp_path / "elsewhere" / file.relative_to(tmp_path / "out") for file in first]
    extractor = Extractor(tmp_path / "out")
    for found in objects(path):
        if found.depth:
            assert extractor.extract(found) == extractor.extract(found)


def test_links_planted_in_the_folder_are_not_followed(tmp_path):
    path = zip_of(tmp_path / "a.zip", ["d/x.dcm", "y.dcm"])
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_bytes(b"precious")
    first = extracted(path, tmp_path / "out")
    first[0].unlink()
    first[0].parent.rmdir()
    first[0].parent.symlink_to(outside)
    first[1].unlink()
    first[1].symlink_to(victim)
    second = extracted(path, tmp_path / "out")
    assert second[1] == first[1]
    assert not second[1].is_symlink()
    assert second[0] != first[0]
    third = extracted(path, tmp_path / "planted")
    root = third[0].parent.parent
    for file in third:
        file.unlink()
    (root / "d").rmdir()
    root.rmdir()
    root.symlink_to(outside)
    for file in extracted(path, tmp_path / "planted"):
        assert file.resolve().is_relative_to((tmp_path / "planted").resolve())
    assert list(outside.iterdir()) == [victim]
    assert victim.read_bytes() == b"precious"


def test_what_is_no_complete_member_is_refused(tmp_path):
    path = zip_of(tmp_path / "a.zip", ["x"])
    extractor = Extractor(tmp_path / "out")
    loose = list(objects(path))[-1]
    with pytest.raises(ValueError, match="only members"):
        extractor.extract(loose)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_environment(tmp_path):
    (tmp_path / "out").write_bytes(b"a file is in the way")
    extractor = Extractor(tmp_path / "out")
    walked = objects(zip_of(tmp_path / "a.zip", ["x"]))
    found = next(walked)
    with pytest.raises(LakeError, match=re.escape(str(tmp_path / "out"))):
        extractor.extract(found)


def test_a_disk_that_fills_up_leaves_no_partial_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("large", bytes(3_000_000))
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from pixels_assets.errors import LakeError
        from pixels_assets.intake.archives import walk
        from pixels_assets.intake.extraction import Extractor
        from pixels_assets.intake.objects import SourceFile, file_address
        from pixels_assets.settings import Limits
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        path = Path(sys.argv[1])
        walked = walk(SourceFile(file_address(path), path.stat().st_size, path.stat().st_mtime_ns, "/"), Limits())
        found = next(walked)
        try:
            Extractor(path.parent / "out").extract(found)
        except LakeError as error:
            print("refused", error)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.zip")], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("refused")
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == []
