"""The count of lost values: nothing of pydicom's own files is lost here, and the other ways lose what they must."""

from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file

from benchmarks.lossless import count, leaves, lost_by_first_value, lost_by_flattening, main


def test_nothing_is_lost_or_changed_over_pydicoms_files():
    totals = count(Path(str(get_testdata_file("CT_small.dcm"))).parent)
    assert totals["values"]["values"] > 10_000
    assert totals["this project"].total() == 0
    assert totals["flattened"]["lost"] > totals["first value"]["lost"] > 0


def test_the_other_ways_lose_what_their_rules_say():
    dataset = pydicom.Dataset()
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    item, other = pydicom.Dataset(), pydicom.Dataset()
    item.CodeValue, other.CodeValue = "1", "2"
    dataset.ProcedureCodeSequence = [item, other]
    dataset.private_block(0x0019, "MAKER", create=True).add_new(1, "LO", "text")
    dataset.Rows = 5
    assert len(list(leaves(dataset))) == 6
    assert lost_by_first_value(dataset) == {"lost": 2}
    assert lost_by_flattening(dataset) == {"lost": 3, "changed": 1}


def test_the_command_prints_a_line_for_each_way(tmp_path, capsys):
    (tmp_path / "a").write_bytes(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes())
    main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("lost")[0].strip() for line in lines[-3:]] == ["this project", "flattened", "first value"]
    assert lines[-3].split() == ["this", "project", "lost", "0", "changed", "0"]
