"""The asset graph as a text, so that a change of it shows in review.

``PIXELS_UPDATE_SNAPSHOTS=1 make test ARGS="-k graph"`` writes the text anew.
"""

import os
from pathlib import Path

import dagster as dg
import pytest

from pixels_assets.definitions import build_definitions
from pixels_assets.lake.schema import TABLES

SNAPSHOT = Path(__file__).with_name("graph.txt")


@pytest.fixture(scope="module")
def definitions(tmp_path_factory):
    return build_definitions({"lake": tmp_path_factory.mktemp("graph") / "lake", "sources": ()})


def partitions(definition):
    return definition.name if isinstance(definition, dg.DynamicPartitionsDefinition) else definition and str(definition)


def described(definitions):
    """One block for each asset, job, sensor, schedule and resource."""
    graph = definitions.resolve_asset_graph()
    for level in graph.toposorted_asset_keys_by_level:
        for key in sorted(level):
            spec = graph.get(key).assets_def.specs_by_key[key]
            yield f"asset {key.to_user_string()}"
            yield f"  made by     {graph.get(key).assets_def.op.name}"
            yield f"  group       {spec.group_name}"
            yield f"  kinds       {', '.join(sorted(spec.kinds))}"
            yield f"  deps        {', '.join(sorted(dep.asset_key.to_user_string() for dep in spec.deps)) or '-'}"
            yield f"  partitions  {partitions(spec.partitions_def) or '-'}"
            yield f"  code        {spec.code_version}"
            yield f"  metadata    {', '.join(sorted(spec.metadata))}"
            for check in sorted(key for key in graph.asset_check_keys if key.asset_key == spec.key):
                blocking = ", blocking" if graph.get_check_spec(check).blocking else ""
                yield f"  check       {check.name}{blocking}"
            yield ""
    for job in sorted(definitions.resolve_all_job_defs(), key=lambda job: job.name):
        if not job.name.startswith("__"):
            assets = sorted(key.to_user_string() for key in job.asset_layer.executable_asset_keys)
            yield f"job {job.name}"
            yield f"  partitions  {partitions(job.partitions_def) or '-'}"
            yield f"  runs        {', '.join(assets or [node.name for node in job.nodes])}"
            yield ""
    for sensor in sorted(definitions.sensors, key=lambda sensor: sensor.name):
        yield f"sensor {sensor.name}"
        yield f"  every       {sensor.minimum_interval_seconds} s"
        yield f"  by default  {sensor.default_status.value.lower()}"
        yield f"  requests    {', '.join(target.job_name for target in sensor.targets)}"
        yield ""
    for schedule in sorted(definitions.schedules, key=lambda schedule: schedule.name):
        yield f"schedule {schedule.name}"
        yield f"  at          {schedule.cron_schedule}"
        yield f"  by default  {schedule.default_status.value.lower()}"
        yield f"  requests    {schedule.job_name}"
        yield ""
    yield f"resources {', '.join(sorted(definitions.resources))}"
    yield f"executor {definitions.executor.name}"


def test_the_graph_is_as_last_looked_at(definitions):
    text = "\n".join(described(definitions)) + "\n"
    if os.environ.get("PIXELS_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8"), "the graph changed: look at it, then write the text anew (see the docstring of this file)"


def test_every_table_is_an_asset_with_its_columns(definitions):
    specs = {spec.key.path[-1]: spec for spec in definitions.resolve_all_asset_specs()}
    assert specs.pop("headers").description  # its columns are those of the data
    assert specs.keys() == TABLES.keys()
    for name, spec in specs.items():
        assert spec.description == TABLES[name].meaning
        assert [column.name for column in spec.metadata["dagster/column_schema"].columns] == list(TABLES[name].column_names)


def test_the_code_location_loads(definitions):
    dg.Definitions.validate_loadable(definitions)


def test_sensors_run_by_themselves_once_there_are_sources(tmp_path):
    watching = build_definitions({"lake": tmp_path / "lake", "sources": (str(tmp_path),)})
    assert {sensor.default_status for sensor in watching.sensors} == {dg.DefaultSensorStatus.RUNNING}
    assert {schedule.default_status for schedule in watching.schedules} == {dg.DefaultScheduleStatus.RUNNING}
