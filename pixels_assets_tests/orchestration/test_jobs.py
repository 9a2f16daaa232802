"""The `discover` job: what the UI needs to bring in files."""

from pathlib import Path

import dagster as dg
import pytest

from pixels_assets.errors import UsageError
from pixels_assets.orchestration.jobs import is_overwrite, look
from pixels_assets.orchestration.partitions import register
from pixels_assets.orchestration.resources import LakeResource


def discover(place, config=None, **overrides):
    job = place.definitions(**overrides).resolve_job_def("discover")
    run_config = {"ops": {"seal_batches": {"config": config or {}}}, "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    return job.execute_in_process(instance=place.instance, run_config=run_config, raise_on_error=False)


def test_sources_of_the_run_config_become_batches_and_partitions(place) -> None:
    place.write("CT_small.dcm")
    result = discover(place, {"sources": [str(place.source)]})
    assert result.success
    (batch,) = result.output_for_node("seal_batches")
    assert place.instance.get_dynamic_partitions("batch") == [batch] == place.keys()
    said = {name: value.value for name, value in result.filter_events(lambda event: event.is_successful_output)[0].step_output_data.metadata.items()}
    assert (said["batches"], said["listed"], said["unchanged"], said["waiting"]) == (1, 1, 0, 0)
    assert said["changes"] == "1 new"
    assert place.run(batch).success
    assert discover(place, {"sources": [str(place.source)]}).output_for_node("seal_batches") == []


def test_sources_of_the_environment_are_the_default(place, monkeypatch) -> None:
    place.write("CT_small.dcm")
    monkeypatch.setenv("PIXELS_SOURCES", str(place.source))
    assert len(discover(place).output_for_node("seal_batches")) == 1


def test_relative_sources_of_the_environment_count_from_here(place, monkeypatch) -> None:
    place.write("CT_small.dcm")
    monkeypatch.chdir(place.source.parent)
    monkeypatch.setenv("PIXELS_SOURCES", "source")
    definitions = place.definitions()
    monkeypatch.chdir("/")
    result = definitions.resolve_job_def("discover").execute_in_process(instance=place.instance)
    assert len(result.output_for_node("seal_batches")) == 1


def test_overwriting_from_the_run_config(place) -> None:
    place.write("CT_small.dcm")
    place.write("sub/MR_small.dcm")
    for batch in place.seal():
        place.run(batch)
    (again,) = discover(place, {"sources": [str(place.source / "sub")], "mode": "overwrite"}).output_for_node("seal_batches")
    assert place.run(again).success
    assert place.names() == ["sub/MR_small.dcm"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mode": "merge"}, "mode is 'merge'; use append or overwrite"),
        ({}, "no source folder is given; name some in the run config of `discover`, or set PIXELS_SOURCES"),
        ({"sources": ["/nowhere/at/all"]}, "source '/nowhere/at/all' cannot be listed: No such file or directory; mount it or correct the path"),
    ],
)
def test_wrong_config_fails_clearly_and_makes_nothing(place, reasons, config, message) -> None:
    result = discover(place, config)
    assert not result.success
    assert reasons(result) == [message]
    assert not place.lake.exists()


def test_a_lake_without_a_name_is_not_made_where_the_run_works(place, reasons, tmp_path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = discover(place, {"sources": [str(place.source)]}, lake=LakeResource(root=""))
    assert reasons(result) == ["root is ''; it must be a path"]
    assert not list(Path.cwd().iterdir())


def test_an_emptied_source_fails_clearly(place, reasons) -> None:
    paths = [place.write(f"{number}/CT_small.dcm") for number in range(100)]
    place.seal()
    for path in paths:
        path.unlink()
        path.parent.rmdir()
    result = discover(place, {"sources": [str(place.source)]})
    assert "mount its disk" in reasons(result)[0]
    assert discover(place, {"sources": [str(place.source)]}, accept_empty=True).success


def test_what_the_program_writes_is_no_source(place, tmp_path) -> None:
    place.lake = place.source / "var" / "lake"
    place.values["lake"] = place.lake
    place.write("CT_small.dcm")
    lake, sources = place.resources(extract_to=place.source / "var" / "unzipped")
    (place.source / "var" / "unzipped").mkdir(parents=True)
    (place.source / "var" / "unzipped" / "member").write_bytes(b"")
    (tmp_path / "home" / "var" / "dagster").mkdir(parents=True)
    (tmp_path / "home" / "var" / "dagster" / "runs.db").write_bytes(b"")
    found = look(place.instance, lake, sources, [str(place.source), str(tmp_path / "home")])
    assert found.listed == 1
    assert look(place.instance, lake, sources, [str(place.source), str(tmp_path / "home")]).batches == []
    for folder in (place.lake, place.lake / "raw_files", place.source / "var" / "unzipped"):
        with pytest.raises(UsageError, match=f"the source '{folder}' is never read"):
            look(place.instance, lake, sources, [str(place.source), str(folder)])


def test_a_lake_that_would_be_its_own_source_is_not_made(place) -> None:
    place.values["lake"] = place.source
    lake, sources = place.resources()
    with pytest.raises(UsageError, match="is never read"):
        look(place.instance, lake, sources, [str(place.source)])
    assert not list(place.source.iterdir())


def test_modes() -> None:
    assert is_overwrite("overwrite")
    assert not is_overwrite("append")
    with pytest.raises(UsageError, match="use append or overwrite"):
        is_overwrite("")


def test_thousands_of_partitions_are_registered_once() -> None:
    keys = [f"20261121T101500-{number:04}" for number in range(1, 2501)]
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, keys[:5])
        register(instance, keys)
        register(instance, [*keys, *keys])
        assert sorted(instance.get_dynamic_partitions("batch")) == keys


def test_maintenance_leaves_all_rows_and_says_what_it_did(place) -> None:
    job = place.definitions().resolve_job_def("maintain")
    assert job.execute_in_process(instance=place.instance).success  # without a lake, too
    place.write("CT_small.dcm")
    for batch in place.seal():
        assert place.run(batch).success
    before = place.rows()
    result = job.execute_in_process(instance=place.instance)
    assert result.success
    (event,) = result.filter_events(lambda event: event.is_successful_output)
    assert {name: value.value for name, value in event.step_output_data.metadata.items()} == {
        "files": 4,
        "compacted": "none",
        "files_removed": "none",
        "log_files_removed": "none",
    }
    assert place.rows().equals(before)
