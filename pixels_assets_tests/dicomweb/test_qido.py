"""Searches over HTTP."""

import pytest

UID = "0020000D"


def ids(response):
    return {row["00100020"]["Value"][0] for row in response.json() if row["00100020"].get("Value")}


def test_all_studies_are_listed_newest_first_with_their_number(server):
    response = server.http.get("/studies")
    rows = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/dicom+json"
    assert response.headers["x-total-count"] == str(len(rows))
    dates = [row["00080020"].get("Value", [""])[0] for row in rows]
    assert dates == sorted(dates, reverse=True)
    assert len({row[UID]["Value"][0] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "query",
    [
        *(
            "PatientID=1CT1",
            "00100020=1CT1",
            "PatientName=CompressedSamples%5ECT1",
            "PatientName=compressed*ct1",
            "PatientName=*ct1",
            "PatientName=c*?CT1",
        ),
        *("StudyDate=20040119", "StudyDate=20040101-20040131", "PatientName=*ct1&ModalitiesInStudy=MR,CT", "Modality=CT&PatientID=1CT?"),
        *(
            "PatientID=1CT1&00280010=128",
            "PatientID=1CT1&Rows=128",
            "PatientID=1CT1&KVP=120",
            "PatientID=1CT1&StudyTime=072730",
            "PatientID=1CT1&SOPClassUID=1.2.840.10008.5.1.4.1.1.2",
        ),
        *("00101002.00100020=1234ABCD", "OtherPatientIDsSequence.TypeOfPatientID=TEX?", "PatientID=1CT1&StudyTime=07-0730"),
    ],
)
def test_a_study_is_found_by_what_it_is(server, query):
    response = server.http.get(f"/studies?{query}")
    assert response.status_code == 200
    assert ids(response) == {"1CT1"}


@pytest.mark.parametrize(
    "query", ["PatientID=1ct1", "PatientID=1CT1&StudyDate=20050101-", "PatientID=1CT1&Modality=MR", "StudyInstanceUID=1.2.3", "Rows=7"]
)
def test_nothing_found_is_no_content(server, query):
    response = server.http.get(f"/studies?{query}")
    assert (response.status_code, response.content, response.headers["x-total-count"]) == (204, b"", "0")


@pytest.mark.parametrize(
    "query",
    [
        *(
            "limit=x",
            "limit=-1",
            "offset=1.5",
            "fuzzymatching=perhaps",
            "Foo=1",
            "StudyDate=yesterday",
            "StudyDate=-",
            "includefield=Foo",
            "Rows=abc",
        ),
        *("PatientID=1&00100020=2", "PatientName.PatientID=1", "PatientID=%00", "PatientID=%ff", "StudyInstanceUID=,"),
    ],
)
def test_a_query_that_cannot_be_understood_is_refused(server, query):
    response = server.http.get(f"/studies?{query}")
    assert response.status_code == 400
    assert response.json()["detail"]


def test_pages_are_the_whole_and_say_that_more_remain(server):
    whole = server.http.get("/studies").json()
    pages, offset = [], 0
    while True:
        response = server.http.get(f"/studies?limit=4&offset={offset}")
        if response.status_code == 204:
            break
        assert ("warning" in response.headers) == (offset + 4 < len(whole))
        assert response.headers["x-total-count"] == str(len(whole))
        pages += response.json()
        offset += 4
    assert pages == whole


def test_fuzzy_matching_is_said_not_to_be_done(server):
    response = server.http.get("/studies?PatientID=1CT1&fuzzymatching=true")
    assert response.headers["warning"].startswith("299 ")
    assert "fuzzymatching" in response.headers["warning"]


@pytest.mark.parametrize("separator", [",", "%2C", "%5C"])
def test_several_uids_are_separated_by_comma_or_backslash(server, separator):
    uids = [row[UID]["Value"][0] for row in server.http.get("/studies?limit=3").json()]
    found = server.http.get(f"/studies?StudyInstanceUID={separator.join(uids)}").json()
    assert [row[UID]["Value"][0] for row in found] == uids


def test_asked_for_fields_are_added_from_columns_and_metadata(server):
    (row,) = server.http.get("/studies?PatientID=1CT1&includefield=00081030%2C00180060,Manufacturer&includefield=00104000").json()
    assert row["00081030"]["Value"] == ["e+1"]
    assert row["00180060"]["Value"] == [120]
    assert row["00080070"]["Value"] == ["GE MEDICAL SYSTEMS"]


def test_series_and_instances_are_searched_at_every_path(server):
    (study,) = server.http.get("/studies?PatientID=1CT1").json()
    uid = study[UID]["Value"][0]
    (series,) = server.http.get(f"/studies/{uid}/series").json()
    key = series["0020000E"]["Value"][0]
    (instance,) = server.http.get(f"/studies/{uid}/series/{key}/instances").json()
    assert instance["00280010"]["Value"] == [128]
    assert server.http.get(f"/studies/{uid}/instances").json() == [instance]
    assert server.http.get(f"/instances?SOPInstanceUID={instance['00080018']['Value'][0]}").json() == [instance]
    assert server.http.get("/series?PatientID=1CT1").json() == [series]
    assert server.http.get(f"/studies/{uid}/series/1.2.3/instances").status_code == 204
    assert instance["00081190"]["Value"] == [f"{server.dicomweb}/studies/{uid}/series/{key}/instances/{instance['00080018']['Value'][0]}"]


def test_all_instances_are_as_many_as_studies_say(server):
    studies = server.http.get("/studies").json()
    response = server.http.get("/instances?limit=1")
    assert int(response.headers["x-total-count"]) == sum(row["00201208"]["Value"][0] for row in studies)


def test_no_study_has_empty_modalities(server):
    assert all(row.get("00080061", {"Value": [""]})["Value"] for row in server.http.get("/studies").json())
