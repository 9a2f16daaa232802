"""The declared tables, and what Delta makes of them."""

import pytest
from deltalake import Schema

from pixels_assets.dicom.attributes import ATTRIBUTES
from pixels_assets.lake.commit import create_tables, open_table
from pixels_assets.lake.schema import BATCH_TABLES, DICOM_METADATA, INSTANCES, OBJECT_CATALOG, RAW_FILES, ROLLUPS, TABLES, Table

every_batch_table = pytest.mark.parametrize("table", BATCH_TABLES.values(), ids=BATCH_TABLES)
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


@every_table
def test_column_names_are_unique_also_where_case_does_not_count(table: Table) -> None:
    names = [name.lower() for name in table.column_names]
    assert len(set(names)) == len(names)


@every_batch_table
def test_batch_is_the_last_column_and_not_inside_a_part(table: Table) -> None:
    assert table.column_names[-1] == "batch"
    assert tuple(table.part_arrow.names) == table.column_names[:-1]


@every_table
def test_every_column_says_what_it_means(table: Table) -> None:
    assert table.meaning.endswith(".")
    assert all(len(column.meaning) >= 5 and "\n" not in column.comment for column in table.columns)


@every_batch_table
def test_every_table_names_the_source_file_of_a_row(table: Table) -> None:
    assert table.object_key == ("path" if table is RAW_FILES else "original_path")
    assert {"path", table.object_key} <= set(table.statistics)


@pytest.mark.parametrize("table", [DICOM_METADATA, OBJECT_CATALOG, INSTANCES], ids=lambda table: table.name)
def test_every_promoted_attribute_is_a_column(table: Table) -> None:
    assert {item.keyword for item in ATTRIBUTES} <= set(table.column_names)


@every_table
def test_patient_names_and_blobs_stay_out_of_the_transaction_log(table: Table) -> None:
    assert not {"PatientName", "PatientBirthDate", "StudyDescription", "meta", "header", "thumbnail"} & set(table.statistics)


@every_table
def test_delta_keeps_types_nullability_comments_and_description(table: Table, tmp_path) -> None:
    create_tables(tmp_path, [table])
    delta = open_table(tmp_path, table.name)
    assert delta.schema() == Schema.from_arrow(table.arrow)
    assert {field.name: field.metadata["comment"] for field in delta.schema().fields} == {column.name: column.comment for column in table.columns}
    assert delta.metadata().description == table.meaning
    assert delta.metadata().partition_columns == (["batch"] if table.name in BATCH_TABLES else [])


@pytest.mark.parametrize("table", ROLLUPS.values(), ids=ROLLUPS)
def test_rollups_have_a_key_that_statistics_lead_to_and_no_partitions(table: Table) -> None:
    assert not table.partitioned
    assert set(table.key) <= set(table.column_names)
    assert table.key[0] in table.statistics
    assert table.part_arrow.names == list(table.column_names)
