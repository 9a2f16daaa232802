"""What the server knows of a lake that moves on while it is read."""

import shutil

import pytest
from deltalake import DeltaTable

from pixels_assets.dicomweb.index import Index


@pytest.fixture
def index(copied):
    found = Index(copied / "lake")
    yield found
    found.close()


def move_on(lake):
    DeltaTable(str(lake / "studies")).alter.set_table_description("a new version")


def test_a_request_ends_on_the_state_on_which_it_began_however_many_come_since(copied, index):
    old = index.snapshot
    for _ in range(3):
        move_on(copied / "lake")
        assert index._has_moved_on()
        assert index.refresh().number > old.number
    assert len(index.select(old, "true", [])) == old.instances > 0
    tables = "select count(*) from duckdb_tables() where table_name like 'instances%'"
    assert index._database.cursor().execute(tables).fetchone() == (2,)
    del old
    move_on(copied / "lake")
    index.refresh()
    assert index._database.cursor().execute(tables).fetchone() == (1,)


def test_a_lake_that_was_made_anew_is_seen_though_its_versions_are_lower(copied, place):
    for _ in range(2):
        move_on(copied / "lake")
    index = Index(copied / "lake")
    newest = index.snapshot.versions["studies"]
    shutil.rmtree(copied / "lake")
    assert not index._has_moved_on()  # nothing to load: what is known is served
    shutil.copytree(place / "lake", copied / "lake")
    assert index._has_moved_on()
    assert index.refresh().versions["studies"] < newest
    assert not index._has_moved_on()
    index.close()
