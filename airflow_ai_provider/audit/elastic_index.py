"""The index in Elasticsearch: a data stream with strict mappings.

Speaks plain JSON, which every Elasticsearch since 7.14 and OpenSearch understand, over Elastic's own transport: the
typed client of one major version sends ``compatible-with`` headers that servers of another refuse.

An event's ``_id`` is its ``event.id`` and it is only ever created, so a second delivery answers 409 and changes
nothing. That holds within one backing index; whenever an event may be there already (a lost reply, a delivery taken up
again) it is looked for in the whole stream first, so that a rollover in between makes no second copy. A search passes
over copies all the same.

A bulk request is halved when the server is busy and grows again when it is not. 429, 5xx and broken connections are
tried anew, for those items only; what is refused for good is returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from airflow_ai_provider.audit.mapping import mapping
from airflow_ai_provider.audit.patience import TRIES, pause
from airflow_ai_provider.audit.search import Event, Query, Rejected, SearchAddress, SearchIndex
from airflow_ai_provider.errors import AuditError, StoreUnavailable

TEMPLATE: Final = "logs-airflow_ai.audit"
LIFECYCLE: Final = "logs-airflow_ai.audit"
PRIORITY: Final = 500
"""Above the server's own template for ``logs-*-*``, which has 100."""
BULK: Final = 1000
"""Events in one request, at most; about half a megabyte."""
_SMALLEST: Final = 50
_MANY: Final = 4
"""More than one in so many refused: the requests are too large for the server's queue."""
_PAGE: Final = 5000
_REASON: Final = 300
_JSON, _NDJSON = "application/json", "application/x-ndjson"
_NOT_THE_EVENTS_FAULT: Final = frozenset({401, 403, 404})

_ROLLOVER: Final = {
    "policy": {
        "phases": {
            "hot": {"actions": {"rollover": {"max_age": "30d", "max_primary_shard_size": "50gb"}}},
            "delete": {"min_age": "400d", "actions": {"delete": {}}},
        }
    }
}
"""Made where there is none of this name; after that it belongs to whoever runs the cluster. The evidence is elsewhere,
so an index over the last year is enough."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: Any


class _Busy(Exception):
    """A later try may succeed. ``lost``: the server may have done what it was asked."""

    def __init__(self, reason: str, *, lost: bool, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.lost = lost
        self.retry_after = retry_after


class _TooLarge(Exception):
    """413."""


class ElasticIndex(SearchIndex):
    """An index on a server. ``prepare`` first."""

    def __init__(self, address: SearchAddress, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.name = f"{address.stream} on {address.url}"
        self._address = address
        self._stream = address.stream
        self._sleep = sleep
        self._bulk = BULK
        self._transport = _transport(address)
        self._authorization = _authorization(address)

    def prepare(self) -> None:
        """Make lifecycle, template and data stream where they are missing, and add fields that are new."""
        has_lifecycle = self._prepare_lifecycle()
        settings = {"index.lifecycle.name": LIFECYCLE} if has_lifecycle else {}
        template = {
            "index_patterns": [f"{self._stream.rpartition('-')[0]}-*"],
            "data_stream": {},
            "priority": PRIORITY,
            "template": {"settings": {"index.codec": "best_compression", **settings}, "mappings": mapping()},
        }
        self._do("PUT", f"/_index_template/{TEMPLATE}", template)
        if self._ask("GET", f"/_data_stream/{self._stream}").status == 404:
            # 400: another has made it meanwhile.
            self._do("PUT", f"/_data_stream/{self._stream}", allowed=(400,))
        self._do("PUT", f"/{self._stream}/_mapping", mapping())

    def _prepare_lifecycle(self) -> bool:
        """False on servers that know none: OpenSearch, Elastic's serverless."""
        found = self._ask("GET", f"/_ilm/policy/{LIFECYCLE}")
        if found.status in (400, 405, 410):
            return False
        if found.status == 404:
            self._do("PUT", f"/_ilm/policy/{LIFECYCLE}", _ROLLOVER)
        return True

    def identity(self) -> str:
        cluster = self._do("GET", "/")["cluster_uuid"]
        return f"{cluster}/{self._stream}"

    # -- writing

    def add(self, events: Sequence[Event], *, replay: bool = False) -> list[Rejected]:
        waiting = {event["event.id"]: event for event in events}
        doubtful = set(waiting) if replay else set()
        rejected: list[Rejected] = []
        attempt = 0
        while waiting:
            before = len(waiting)
            problem = self._pass(waiting, doubtful, rejected)
            if problem is None:
                continue
            attempt = 1 if len(waiting) < before else attempt + 1
            if attempt >= TRIES:
                raise StoreUnavailable(f"audit index {self.name}: does not take events ({problem})")
            self._sleep(max(problem.retry_after, pause(attempt)))
        return rejected

    def _pass(self, waiting: dict[str, Event], doubtful: set[str], rejected: list[Rejected]) -> _Busy | None:
        """Send everything that waits, request by request, until one fails; what arrives is taken out."""
        refused = 0
        ids = list(waiting)
        while ids:
            batch, ids = ids[: self._bulk], ids[self._bulk :]
            try:
                self._drop_present(waiting, doubtful.intersection(batch))
                doubtful.difference_update(batch)
                again = self._send([waiting[each] for each in batch if each in waiting], rejected)
            except _TooLarge:
                self._split(waiting, batch, rejected)
                return None
            except _Busy as busy:
                if busy.lost:
                    doubtful.update(batch)
                self._bulk = max(_SMALLEST, self._bulk // 2)
                return busy
            for each in set(batch) - again:
                waiting.pop(each, None)
            refused += len(again)
            grown = self._bulk // 2 if len(again) * _MANY > len(batch) else self._bulk * 2
            self._bulk = min(BULK, max(_SMALLEST, grown))
        return _Busy(f"{refused} events refused for now", lost=False) if refused else None

    def _split(self, waiting: dict[str, Event], batch: list[str], rejected: list[Rejected]) -> None:
        """A request was too large: send smaller ones, and give up what is too large by itself."""
        if len(batch) == 1:
            rejected.append(Rejected(batch[0], "413: larger than the server accepts"))
            del waiting[batch[0]]
        self._bulk = max(1, len(batch) // 2)

    def _send(self, events: list[Event], rejected: list[Rejected]) -> set[str]:
        """One bulk request; the ids to try again."""
        if not events:
            return set()
        lines = (orjson.dumps({"create": {"_id": event["event.id"]}}) + b"\n" + orjson.dumps(event) for event in events)
        answer = self._once("POST", f"/{self._stream}/_bulk", b"\n".join(lines) + b"\n", _NDJSON)
        if answer.status != 200:
            raise self._refused("_bulk", answer)
        again = set()
        for event, item in zip(events, answer.body["items"], strict=True):
            result = item["create"]
            status = int(result["status"])
            if status in (200, 201, 409):
                continue
            if status == 429 or status >= 500:
                again.add(event["event.id"])
            elif status in _NOT_THE_EVENTS_FAULT:
                raise self._refused("_bulk", _Answer(status, result))
            else:
                rejected.append(Rejected(event["event.id"], f"{status} {_reason(result)}"))
        return again

    def _drop_present(self, waiting: dict[str, Event], ids: Set[str]) -> None:
        """Take out what an index of the stream has already."""
        if not ids:
            return
        self.refresh()
        question = {"size": len(ids), "_source": False, "query": {"terms": {"event.id": sorted(ids)}}}
        found = self._do("POST", f"/{self._stream}/_search", question)
        for hit in found["hits"]["hits"]:
            waiting.pop(hit["_id"], None)

    # -- reading

    def refresh(self) -> None:
        self._do("POST", f"/{self._stream}/_refresh")

    def search(self, query: Query) -> list[Event]:
        found: list[Event] = []
        for event in self._newest_first(query):
            if not found or found[-1]["event.id"] != event["event.id"]:
                found.append(event)
            if len(found) == query.limit:
                break
        return found

    def _newest_first(self, query: Query) -> Iterator[Event]:
        """Events page by page. Copies have the same time and id, so they follow each other."""
        body = {
            "size": min(_PAGE, query.limit),
            "sort": [{"@timestamp": "desc"}, {"event.id": "desc"}],
            "query": {"bool": {"filter": _filters(query)}},
            "track_total_hits": False,
        }
        while hits := self._find(body):
            yield from (hit["_source"] for hit in hits)
            body["search_after"] = hits[-1]["sort"]

    def _find(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        answer = self._ask("POST", f"/{self._stream}/_search?ignore_unavailable=true", body)
        if answer.status == 404:
            return []
        if answer.status != 200:
            raise self._refused("_search", answer)
        hits: list[dict[str, Any]] = answer.body["hits"]["hits"]
        return hits

    def count(self) -> int:
        self.refresh()
        return int(self._do("GET", f"/{self._stream}/_count")["count"])

    def clear(self) -> None:
        self._do("DELETE", f"/_data_stream/{self._stream}", allowed=(404,))
        self.prepare()

    def close(self) -> None:
        with suppress(Exception):
            self._transport.close()

    # -- requests

    def _do(self, method: str, target: str, body: Any = None, *, allowed: tuple[int, ...] = ()) -> Any:
        answer = self._ask(method, target, body)
        if answer.status >= 300 and answer.status not in allowed:
            raise self._refused(target, answer)
        return answer.body

    def _ask(self, method: str, target: str, body: Any = None) -> _Answer:
        """A request that may be repeated."""
        for attempt in range(1, TRIES + 1):
            try:
                return self._once(method, target, None if body is None else orjson.dumps(body))
            except _Busy as busy:
                reason, retry_after = str(busy), busy.retry_after
            if attempt < TRIES:
                self._sleep(max(retry_after, pause(attempt)))
        raise StoreUnavailable(f"audit index {self.name}: does not answer ({reason})")

    def _once(self, method: str, target: str, body: bytes | None, content_type: str = _JSON) -> _Answer:
        """One request. Raises ``_Busy`` and ``_TooLarge``."""
        from elastic_transport import SerializationError, TransportError

        headers = {"accept": _JSON, **self._authorization}
        if body is not None:
            headers["content-type"] = content_type
        try:
            meta, answer = self._transport.perform_request(method, target, body=body, headers=headers)
        except SerializationError:
            raise _Busy("an answer that cannot be read", lost=True) from None
        except TransportError as error:
            raise _Busy(type(error).__name__, lost=True) from None
        if meta.status == 429 or meta.status >= 500:
            retry_after = meta.headers.get("retry-after", "")
            seconds = min(float(retry_after), 60.0) if retry_after.isdigit() else 0.0
            raise _Busy(f"HTTP {meta.status}", lost=meta.status != 429, retry_after=seconds)
        if meta.status == 413:
            raise _TooLarge
        return _Answer(meta.status, answer)

    def _refused(self, target: str, answer: _Answer) -> AuditError:
        remedy = {
            401: "check the login and password, or the api_key, of the connection",
            403: "the user needs the privileges that docs/audit.md lists",
            404: "the data stream is gone; run airflow ai audit index rebuild",
        }.get(answer.status, "see the server's own log")
        return AuditError(
            f"audit index {self.name}: {target} answered {answer.status} {_reason(answer.body)}; {remedy}"
        )


def _filters(query: Query) -> list[dict[str, Any]]:
    filters: list[dict[str, Any]] = [{"term": {name: value}} for name, value in query.terms().items()]
    span = {}
    if query.since is not None:
        span["gte"] = query.since.isoformat()
    if query.until is not None:
        span["lt"] = query.until.isoformat()
    return [*filters, {"range": {"@timestamp": span}}] if span else filters


def _reason(body: Any) -> str:
    """Type and reason of an error, without the value that Elasticsearch quotes in it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error)[:_REASON]
    text = f"{error.get('type', '')}: {error.get('reason', '')}"
    return text.partition(" Preview of field's value")[0][:_REASON]


def _transport(address: SearchAddress) -> Any:
    try:
        from elastic_transport import NodeConfig, Transport
    except ImportError:
        raise AuditError(
            "the audit index in Elasticsearch needs elastic-transport; run pip install"
            " 'airflow-ai-provider[elasticsearch]'"
        ) from None
    parts = urlsplit(address.url)
    secure = parts.scheme == "https"
    tls: dict[str, Any] = {"verify_certs": address.verify_certs, "ca_certs": address.ca_certs} if secure else {}
    node = NodeConfig(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 9200),
        path_prefix=parts.path,
        request_timeout=60.0,
        http_compress=True,
        **tls,
    )
    return Transport([node], max_retries=0, meta_header=False)


def _authorization(address: SearchAddress) -> dict[str, str]:
    from elastic_transport.client_utils import basic_auth_to_header

    if address.api_key:
        return {"authorization": f"ApiKey {address.api_key}"}
    if address.user and address.password:
        return {"authorization": basic_auth_to_header((address.user, address.password))}
    return {}
