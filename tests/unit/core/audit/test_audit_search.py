"""The index over the trail: one behaviour for SQLite, the strict double of Elasticsearch, and a real OpenSearch."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.fault_proxy import FaultProxy, Faults
from support.opensearch import OpenSearchServer
from support.search_double import SearchDouble

from airflow_ai_provider.core.audit.sinks.elastic_index import ElasticIndex
from airflow_ai_provider.core.audit.sinks.search import STREAM, Event, Query, SearchAddress, SearchIndex, field_types
from airflow_ai_provider.core.audit.sinks.sqlite_index import SqliteIndex
from airflow_ai_provider.core.audit.trail import events as schema
from airflow_ai_provider.errors import AuditError, StoreUnavailable

START = datetime(2025, 3, 1, tzinfo=UTC)


def event(number: int, **fields: Any) -> Event:
    """An event as the trail writes it, one minute after the one before."""
    values = {"request_id": f"{number:032x}", "user": "ada", "dag_id": "support", "run_id": "r1", **fields}
    action, outcome = values.pop("action", "llm.call"), values.pop("outcome", "ok")
    at = schema.format_time(START + timedelta(minutes=number))
    return schema.build_event(action, outcome, f"writer00-{number}", at, values)


@pytest.fixture
def double() -> Iterator[SearchDouble]:
    with SearchDouble() as server:
        yield server


@pytest.fixture(params=["sqlite", "double", "opensearch"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SearchIndex]:
    if request.param == "sqlite":
        opened: SearchIndex = SqliteIndex(tmp_path / "audit" / "search.db")
    else:
        opened = ElasticIndex(SearchAddress(request.getfixturevalue(request.param).url))
    with opened:
        opened.clear()
        opened.prepare()
        yield opened


def ids(found: list[Event]) -> list[int]:
    return [int(each["event.id"].partition("-")[2]) for each in found]


def filled(index: SearchIndex, events: list[Event]) -> None:
    assert index.add(events) == []
    assert index.count() == len(events)


# What every index does


def test_events_come_back_as_they_were_written_newest_first(index: SearchIndex) -> None:
    written = [event(number) for number in range(5)]
    filled(index, written)
    assert index.search(Query()) == written[::-1]
    assert index.search(Query(limit=2)) == [written[4], written[3]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(user="bob"), [3, 1]),
        (Query(action="policy.loaded"), [4]),
        (Query(outcome="failure"), [2]),
        (Query(dag_id="other", run_id="r2"), [5]),
        (Query(request_id=f"{1:032x}"), [1]),
        (Query(since=START + timedelta(minutes=4)), [5, 4]),
        (Query(until=START + timedelta(minutes=2)), [1, 0]),
        (Query(user="bob", since=START + timedelta(minutes=2), until=START + timedelta(minutes=4)), [3]),
        (Query(user="nobody"), []),
    ],
)
def test_everything_that_is_asked_must_hold(index: SearchIndex, query: Query, expected: list[int]) -> None:
    policy = {"action": "policy.loaded", "policy_hash": "0" * 64, "request_id": None}
    filled(
        index,
        [
            event(0),
            event(1, user="bob"),
            event(2, outcome="error", error_type="timeout"),
            event(3, user="bob"),
            event(4, **policy),
            event(5, dag_id="other", run_id="r2"),
        ],
    )
    assert ids(index.search(query)) == expected


def test_the_questions_auditors_ask(index: SearchIndex) -> None:
    filled(index, [event(number, user="bob" if number % 2 else "ada") for number in range(6)])
    now = START + timedelta(days=1, minutes=3)
    assert ids(index.actions_of("bob", days=1, now=now)) == [5, 3]
    assert ids(index.events_of_run("support", "r1")) == [5, 4, 3, 2, 1, 0]
    assert ids(index.events_of_request(f"{2:032x}")) == [2]


@pytest.mark.parametrize("replay", [False, True])
def test_an_event_is_there_once_however_often_it_is_added(index: SearchIndex, replay: bool) -> None:
    filled(index, [event(number) for number in range(10)])
    assert index.add([event(number) for number in range(5, 15)], replay=replay) == []
    assert index.count() == 15
    assert ids(index.search(Query())) == list(range(14, -1, -1))


def test_a_long_answer_is_whole(index: SearchIndex) -> None:
    filled(index, [event(number) for number in range(6000)])
    assert ids(index.search(Query(limit=5999))) == list(range(5999, 0, -1))


def test_an_event_that_does_not_fit_is_refused_alone(index: SearchIndex) -> None:
    broken = event(1)
    broken["@timestamp"] = "yesterday"
    (rejected,) = index.add([event(0), broken, event(2)])
    assert rejected.event_id == "writer00-1"
    assert rejected.reason
    assert "Preview of" not in rejected.reason
    assert index.count() == 2
    assert ids(index.search(Query())) == [2, 0]


def test_clear_forgets_everything(index: SearchIndex) -> None:
    filled(index, [event(0)])
    index.clear()
    assert index.count() == 0
    filled(index, [event(0), event(1)])


def test_a_query_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(AuditError, match="since has no time zone"):
        Query(since=datetime(2025, 1, 1))
    with pytest.raises(AuditError, match="limit 0; expected 1 to 100000"):
        Query(limit=0)


# SQLite


@pytest.mark.parametrize(
    ("query", "used"),
    [
        (Query(user="ada", since=START), "by_user (user=? AND at>?)"),
        (Query(action="llm.call", since=START, until=START), "by_action (action=? AND at>? AND at<?)"),
        (Query(dag_id="support", run_id="r1"), "by_run (dag_id=? AND run_id=?)"),
        (Query(dag_id="support", since=START), "by_dag (dag_id=? AND at>?)"),
        (Query(request_id="r"), "by_request (request_id=?)"),
        (Query(since=START), "by_time (at>?)"),
        (Query(), "by_time"),
    ],
)
def test_every_question_has_its_index(tmp_path: Path, query: Query, used: str) -> None:
    with SqliteIndex(tmp_path / "search.db") as index:
        assert f"USING INDEX {used}" in index.plan(query)
        # Only an answer of one request is sorted: it is a handful.
        assert ("TEMP B-TREE" in index.plan(query)) == (query.request_id is not None)


def test_the_file_is_its_owners_alone_and_a_broken_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "audit" / "search.db"
    with SqliteIndex(path) as index:
        identity = index.identity()
    assert path.stat().st_mode & 0o777 == 0o600
    with SqliteIndex(path) as again:
        assert again.identity() == identity
        again.clear()
        assert again.identity() != identity
    path.write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(AuditError, match=r"search.db: file is not a database; remove it and run"):
        SqliteIndex(path)


# Elasticsearch


@pytest.fixture
def connect(double: SearchDouble) -> Callable[..., ElasticIndex]:
    slept: list[float] = []

    def make(**address: Any) -> ElasticIndex:
        return ElasticIndex(SearchAddress(double.url, **address), sleep=slept.append)

    return make


def test_the_mapping_is_strict_and_knows_every_field_of_the_schema(double: SearchDouble, connect: Any) -> None:
    connect().prepare()
    (template,) = double.templates.values()
    assert template["index_patterns"] == ["logs-airflow_ai.audit-*"]
    assert template["template"]["mappings"]["dynamic"] == "strict"
    assert template["template"]["settings"]["index.lifecycle.name"] in double.lifecycles
    assert {name for name, *_ in schema._FIELDS.values()} <= set(field_types())


def test_preparing_again_changes_nothing_that_belongs_to_the_cluster(double: SearchDouble, connect: Any) -> None:
    connect().prepare()
    mine = {"policy": {"phases": {"delete": {"min_age": "2555d"}}}}
    double.lifecycles = dict.fromkeys(double.lifecycles, mine)
    connect().add([event(0)])
    connect().prepare()
    assert list(double.lifecycles.values()) == [mine]
    assert len(double.documents(STREAM)) == 1


@pytest.mark.parametrize("major", [7, 8, 9])
def test_servers_of_every_version_take_the_requests(major: int) -> None:
    with SearchDouble(major=major) as double, ElasticIndex(SearchAddress(double.url)) as index:
        index.prepare()
        filled(index, [event(0)])


def test_a_server_without_lifecycles_gets_a_template_without_one() -> None:
    with SearchDouble(without_lifecycle=True) as double, ElasticIndex(SearchAddress(double.url)) as index:
        index.prepare()
        filled(index, [event(0)])
        (template,) = double.templates.values()
        assert "index.lifecycle.name" not in template["template"]["settings"]


def test_a_replay_after_a_rollover_makes_no_copy(double: SearchDouble, connect: Any) -> None:
    """Ids are unique in one backing index only."""
    index = connect()
    index.prepare()
    filled(index, [event(number) for number in range(4)])
    double.rollover(STREAM)
    index.add([event(number) for number in range(6)], replay=True)
    assert len(double.documents(STREAM)) == 6
    assert index.count() == 6
    index.add([event(5), event(0)])  # nobody said that they may be there: copies, and a search passes over them
    assert index.count() == 7
    assert ids(index.search(Query())) == [5, 4, 3, 2, 1, 0]


def test_a_real_server_behind_a_bad_network_has_each_event_once(opensearch: OpenSearchServer) -> None:
    """503, broken connections, lost replies, and a rollover in the middle of it."""
    events = [event(number) for number in range(3000)]
    with FaultProxy(opensearch.url, Faults(), seed=3) as proxy, ElasticIndex(SearchAddress(proxy.url)) as index:
        index.clear()
        assert index.add(events[:2000]) == []
        asked = urllib.request.Request(f"{opensearch.url}/{STREAM}/_rollover", method="POST")
        assert urllib.request.urlopen(asked).status == 200
        assert index.add(events[1000:], replay=True) == []
        assert index.count() == 3000
        assert ids(index.search(Query(limit=3000))) == list(range(2999, -1, -1))
        assert proxy.dealt["lost"] > 0


@pytest.mark.parametrize(("rejected", "sizes"), [(0.05, [1000, 1000, 1000]), (0.5, [1000, 500, 250])])
def test_single_refusals_are_tried_again_alone_and_many_shrink_the_request(
    connect: Any, double: SearchDouble, rejected: float, sizes: list[int]
) -> None:
    double.rejected = rejected
    index = connect()
    index.prepare()
    assert index.add([event(number) for number in range(3000)]) == []
    assert len(double.documents(STREAM)) == 3000
    assert double.outcomes["201"] == 3000
    assert double.outcomes["409"] == 0
    assert double.sizes[:3] == sizes


def test_a_server_that_is_always_busy_is_transient(connect: Any, double: SearchDouble) -> None:
    double.rejected = 1.0
    index = connect()
    index.prepare()
    with pytest.raises(StoreUnavailable, match=r"does not take events .2 events refused for now."):
        index.add([event(0), event(1)])
    double.stop()
    with pytest.raises(StoreUnavailable, match=r"does not answer .ConnectionError."):
        index.search(Query())
    double.start()


def test_a_request_that_is_too_large_is_halved(double: SearchDouble, connect: Any) -> None:
    double.largest = 20_000
    index = connect()
    index.prepare()
    assert index.add([event(number) for number in range(500)]) == []
    assert len(double.documents(STREAM)) == 500
    double.largest = 10
    (rejected,) = index.add([event(500)])
    assert rejected.reason == "413: larger than the server accepts"


def test_wrong_logins_are_told_without_the_password() -> None:
    with SearchDouble(login=("ada", "secret-word")) as double:
        with ElasticIndex(SearchAddress(double.url, user="ada", password="secret-word")) as index:
            index.prepare()
            filled(index, [event(0)])
        wrong = SearchAddress(double.url, user="ada", password="wrong-word")
        assert "wrong-word" not in repr(wrong)
        with pytest.raises(AuditError, match=r"answered 401 .*check the login and password") as refused:
            ElasticIndex(wrong).prepare()
        assert "wrong-word" not in str(refused.value)


# Managed servers, which refuse some requests

DENIED = {"error": {"type": "security_exception", "reason": "no permissions for [cluster:admin]"}, "status": 403}
MANAGED = {"Message": "Your request: '/_ilm/policy' is not allowed."}
UNKNOWN = {"error": "no handler found for uri"}
PAGE = "<html><body>403 Forbidden</body></html>"


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize(
    "answer", [(401, MANAGED), (403, DENIED), (404, UNKNOWN), (405, {}), (403, PAGE), (400, UNKNOWN), (501, PAGE)]
)
def test_a_server_that_refuses_lifecycles_gets_the_events_and_the_log_says_so_once(
    answer: tuple[int, Any], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with SearchDouble(refuse={f"({method}|PUT) /_ilm/.*": answer}) as double:
        for _ in range(2):
            with ElasticIndex(SearchAddress(double.url)) as index:
                index.prepare()
        with ElasticIndex(SearchAddress(double.url)) as index:
            filled(index, [event(0)])
        ((template),) = double.templates.values()
    assert "index.lifecycle.name" not in template["template"]["settings"]
    (told,) = (record.getMessage() for record in caplog.records if "no lifecycle here" in record.getMessage())
    assert f"answered {answer[0]}" in told
    assert "<html>" not in told


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this package logged; the client below it logs every request where another test has turned that on."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("airflow_ai_provider")]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_login_is_no_missing_lifecycle(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with (
        SearchDouble(refuse={".*": (status, DENIED)}) as double,
        ElasticIndex(SearchAddress(double.url)) as index,
        pytest.raises(AuditError, match=rf"_data_stream/.* answered {status} security_exception"),
    ):
        index.prepare()
    assert not said(caplog)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("body", [DENIED, PAGE, MANAGED])
def test_a_refusal_of_events_is_an_error_that_says_what_it_is(
    connect: Any, double: SearchDouble, status: int, body: Any
) -> None:
    double.refuse = {"POST .*/_bulk": (status, body)}
    index = connect()
    with pytest.raises(AuditError, match=f"_bulk answered {status} .*(connection|privileges)") as refused:
        index.add([event(0)])
    assert "<html>" not in str(refused.value)


def test_a_refusal_of_single_events_is_an_error_and_no_dead_letter(connect: Any, double: SearchDouble) -> None:
    denied = {"status": 403, "error": {"type": "cluster_block_exception", "reason": "index read-only"}}
    double.refuse = {"POST .*/_bulk": (200, {"errors": True, "items": [{"create": denied}]})}
    index = connect()
    with pytest.raises(AuditError, match=r"403 cluster_block_exception.*room on its disks"):
        index.add([event(0)])


@pytest.mark.parametrize(
    ("refuse", "told"),
    [
        ({"PUT /_index_template/.*": (403, DENIED)}, ["index template"]),
        ({"PUT .*/_mapping": (403, DENIED)}, ["mapping"]),
        ({"POST .*/_refresh": (403, DENIED)}, []),
        ({"GET /": (403, DENIED)}, []),
        ({"GET /": (404, {})}, []),
        ({"GET /": (403, PAGE)}, []),
    ],
)
def test_what_was_set_up_by_another_is_used(
    refuse: dict[str, tuple[int, Any]], told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with SearchDouble() as double:
        with ElasticIndex(SearchAddress(double.url)) as index:
            index.prepare()
        double.refuse = refuse
        with ElasticIndex(SearchAddress(double.url)) as index:
            index.prepare()
            assert index.identity().endswith(STREAM)
            assert index.add([event(0)]) == []
            assert index.add([event(0)], replay=True) == []
            index.refresh()
        assert len(double.documents(STREAM)) == 1
    assert [word for word in told if word in caplog.text] == told
    assert len(said(caplog)) == len(told)


@pytest.mark.parametrize("answer", [(403, DENIED), (404, {}), (405, UNKNOWN), (400, UNKNOWN), (403, PAGE)])
def test_a_server_without_data_streams_gets_a_plain_index(
    answer: tuple[int, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A serverless collection of type search: no lifecycles, streams, refreshes, nor a root to ask."""
    refuse = {f"[A-Z]+ {path}": answer for path in ("/_ilm/.*", "/_data_stream/.*", ".*/_refresh", "/")}
    with SearchDouble(refuse=refuse) as double, ElasticIndex(SearchAddress(double.url)) as index:
        index.prepare()
        index.prepare()
        assert index.add([event(0), event(1)]) == []
        assert index.add([event(1), event(2)]) == []
        assert len(double.documents(STREAM)) == 3
        assert set(double.indices) == {STREAM}
        index.clear()
        assert double.documents(STREAM) == []
    assert len([each for each in caplog.records if "plain index" in each.getMessage()]) == 1


def test_a_template_that_is_refused_and_missing_is_told_with_the_refusal() -> None:
    refuse = {"PUT /_index_template/.*": (403, DENIED), "PUT /logs.*": (403, DENIED)}
    with (
        SearchDouble(refuse=refuse) as double,
        ElasticIndex(SearchAddress(double.url)) as index,
        pytest.raises(AuditError, match=r"_data_stream/.* no matching index template"),
    ):
        index.prepare()


def test_a_collection_that_takes_no_ids_is_told_and_nothing_is_lost() -> None:
    with SearchDouble(takes_ids=False) as double, ElasticIndex(SearchAddress(double.url)) as index:
        index.prepare()
        with pytest.raises(AuditError, match=r"collection of type search"):
            index.add([event(0)])


def test_a_page_instead_of_an_answer_is_an_outage(connect: Any, double: SearchDouble) -> None:
    index = connect()
    index.prepare()
    double.refuse = {"POST .*/_bulk": (200, PAGE)}
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        index.add([event(0)])


def test_the_double_refuses_what_the_server_refuses(double: SearchDouble) -> None:
    """Mixed headers, versions of another server, other operations than create, a body without its last newline."""
    plain, ndjson = "application/json", "application/x-ndjson"
    vendor = "application/vnd.elasticsearch+json; compatible-with="

    def status(accept: str, content_type: str, body: bytes) -> int:
        headers = {"accept": accept, "content-type": content_type}
        asked = urllib.request.Request(f"{double.url}/{STREAM}/_bulk", body, headers)
        try:
            return int(urllib.request.urlopen(asked).status)
        except urllib.error.HTTPError as refused:
            return refused.code

    with ElasticIndex(SearchAddress(double.url)) as index:
        index.prepare()
    line = b'{"create":{"_id":"a"}}\n{"@timestamp":"2025-01-01T00:00:00.000Z"}'
    assert status(f"{vendor}9", ndjson, line + b"\n") == 400
    assert status(f"{vendor}7", f"{vendor}7", line + b"\n") == 400
    assert status(plain, "text/plain", line + b"\n") == 406
    assert status(plain, ndjson, line) == 400
    assert status(f"{vendor}9", f"{vendor}9", line + b"\n") == 200
    assert status(plain, ndjson, b'{"index":{"_id":"b"}}\n{"@timestamp":"2025-01-01T00:00:00.000Z"}\n') == 200
    assert double.outcomes == {"201": 1, "400": 1}


def test_the_vendors_own_client_takes_the_double_for_a_server_of_its_version() -> None:
    from elasticsearch import BadRequestError, Elasticsearch

    with SearchDouble(major=9) as nine, Elasticsearch(nine.url) as client:
        assert client.info()["version"]["number"] == "9.0.0"
    with SearchDouble(major=8) as eight, Elasticsearch(eight.url) as client, pytest.raises(BadRequestError):
        client.info()
