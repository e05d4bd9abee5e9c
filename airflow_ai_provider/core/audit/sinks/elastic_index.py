"""The index in Elasticsearch: a data stream with strict mappings.

Speaks plain JSON, which every Elasticsearch since 7.14 and OpenSearch understand, over Elastic's own transport: the
typed client of one major version sends ``compatible-with`` headers that servers of another refuse.

An event's ``_id`` is its ``event.id`` and it is only ever created, so a second delivery answers 409 and changes
nothing. That holds within one backing index; whenever an event may be there already (a lost reply, a delivery taken up
again) it is looked for in the whole stream first, so that a rollover in between makes no second copy. A search passes
over copies all the same.

A bulk request is halved when the server is busy and grows again when it is not. 429, 5xx and broken connections are
tried anew, for those items only; what is refused for good is returned.

Managed servers refuse requests that set an index up: lifecycle policies, templates, data streams, refreshes, ``GET /``.
``prepare`` does without what is refused, says so once in the log of a process, and uses a plain index where there are
no data streams. What delivers and searches events is never done without: a refusal there is an ``AuditError``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from airflow_ai_provider.core.audit.sinks.progress import TRIES, pause
from airflow_ai_provider.core.audit.sinks.search import Event, Query, Rejected, SearchAddress, SearchIndex, mapping
from airflow_ai_provider.core.errors import AuditError, StoreUnavailable

log = logging.getLogger(__name__)

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
_NOT_OFFERED: Final = frozenset({401, 403, 405, 410, 501})
"""Statuses of requests that a server does not offer, or does not allow this user."""
_EXISTS: Final = "resource_already_exists_exception"
_NO_IDS: Final = "Document ID is not supported"
_warned: set[tuple[str, str]] = set()
"""Index and message of what this process has already logged."""

_ROLLOVER: Final = {
    "policy": {
        "phases": {
            "hot": {"actions": {"rollover": {"max_age": "30d", "max_primary_shard_size": "50gb"}}},
            "delete": {"min_age": "400d", "actions": {"delete": {}}},
        }
    }
}
"""Made where there is none of this name; after that it belongs to the administrators of the cluster. The
evidence is elsewhere, so an index over the last year is enough."""


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
        """Make lifecycle, template and data stream where they are missing, and add fields that are new.

        Raises ``AuditError`` where neither a data stream nor an index can be had, ``StoreUnavailable`` for an outage.
        """
        refused = []
        if refusal := self._prepare_lifecycle():
            detail = "no lifecycle here: nothing rolls the index over or removes old events. Set it up on the server"
            refused.append(f"{refusal}; {detail}")
        template = {
            "index_patterns": [f"{self._stream.rpartition('-')[0]}-*"],
            "data_stream": {},
            "priority": PRIORITY,
            "template": {
                "settings": {"index.codec": "best_compression"}
                | ({} if refusal else {"index.lifecycle.name": LIFECYCLE}),
                "mappings": mapping(),
            },
        }
        answer = self._ask("PUT", f"/_index_template/{TEMPLATE}", template)
        if _is_not_offered(answer):
            refused.append(f"{_told(answer)} for its index template; the stream or index keeps the mapping it has")
        elif answer.status >= 300:
            raise self._refused(f"/_index_template/{TEMPLATE}", answer)
        refused += self._prepare_stream()
        answer = self._ask("PUT", f"/{self._stream}/_mapping", mapping())
        if _is_not_offered(answer):
            refused.append(f"{_told(answer)} for its mapping; fields that are new since it was made are not indexed")
        elif answer.status >= 300:
            raise self._refused("_mapping", answer)
        for message in refused:
            self._warn_once(message)

    def _prepare_lifecycle(self) -> str:
        """Make the lifecycle policy where there is none; what the server answered where it offers none, or empty.

        OpenSearch and serverless servers have no such policies; managed ones may refuse them to their users.
        """
        target = f"/_ilm/policy/{LIFECYCLE}"
        answer = self._ask("GET", target)
        if answer.status == 404:
            answer = self._ask("PUT", target, _ROLLOVER)
        return _told(answer) if answer.status >= 300 else ""

    def _prepare_stream(self) -> list[str]:
        """Make the data stream, or a plain index where the server has none; what to log of it."""
        target = f"/_data_stream/{self._stream}"
        if self._ask("GET", target).status == 200:
            return []
        stream = self._ask("PUT", target)
        if stream.status < 300 or _type(stream) == _EXISTS:  # another process was faster
            return []
        index = self._ask("PUT", f"/{self._stream}", {"mappings": mapping()})
        if index.status >= 300 and _type(index) != _EXISTS:
            raise self._refused(target, stream)
        return [f"{_told(stream)} for its data stream; a plain index of that name is used"]

    def _warn_once(self, message: str) -> None:
        if (self.name, message) not in _warned:
            _warned.add((self.name, message))
            log.warning("audit index %s: the server answered %s", self.name, message)

    def identity(self) -> str:
        answer = self._ask("GET", "/")
        if answer.status == 200 and "cluster_uuid" in answer.body:
            return f"{answer.body['cluster_uuid']}/{self._stream}"
        if answer.status == 200 or answer.status == 404 or _is_not_offered(answer):
            return f"{self._address.url}/{self._stream}"
        raise self._refused("/", answer)

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
            elif status in _NOT_THE_EVENTS_FAULT or _NO_IDS in _reason(result):
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
        """Make what was added visible to searches; a server that does not offer it does so by itself, later."""
        answer = self._ask("POST", f"/{self._stream}/_refresh")
        if answer.status >= 300 and not _is_not_offered(answer):
            raise self._refused("_refresh", answer)

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
        answer = self._ask("DELETE", f"/_data_stream/{self._stream}")
        if answer.status >= 300:
            self._do("DELETE", f"/{self._stream}", allowed=(404,))
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
        if meta.status == 429 or (meta.status >= 500 and meta.status not in _NOT_OFFERED):
            retry_after = meta.headers.get("retry-after", "")
            seconds = min(float(retry_after), 60.0) if retry_after.isdigit() else 0.0
            raise _Busy(f"HTTP {meta.status}", lost=meta.status != 429, retry_after=seconds)
        if meta.status == 413:
            raise _TooLarge
        if meta.status < 300 and not isinstance(answer, dict):
            raise _Busy("an answer that cannot be read", lost=True)
        return _Answer(meta.status, answer)

    def _refused(self, target: str, answer: _Answer) -> AuditError:
        reason = _reason(answer.body)
        if _NO_IDS in reason:
            remedy = "use a collection of type search: others take no document ids, so events would be indexed twice"
        elif "cluster_block_exception" in reason:
            remedy = "the server takes no writes now: see its own log, and the room on its disks"
        else:
            remedy = _REMEDIES.get(answer.status, "see the server's own log")
        return AuditError(f"audit index {self.name}: {target} answered {answer.status} {reason}; {remedy}")


_REMEDIES: Final = {
    401: "check the login and password, or the api_key, of the connection",
    403: "the user needs the privileges that docs/audit.md lists",
    404: "the data stream is gone; run airflow ai audit index rebuild",
}


def _is_not_offered(answer: _Answer) -> bool:
    """Whether the server has no such request, or does not let this user make it."""
    if answer.status in (400, 404):  # "no handler found for uri": a server that knows the request names what is wrong
        return not _type(answer)
    return answer.status in _NOT_OFFERED


def _type(answer: _Answer) -> str:
    """The kind of error that Elasticsearch and OpenSearch name; empty where something else answered."""
    error = answer.body.get("error") if isinstance(answer.body, dict) else None
    return str(error.get("type", "")) if isinstance(error, dict) else ""


def _told(answer: _Answer) -> str:
    return f"{answer.status} {_reason(answer.body)}"


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
    if not isinstance(body, dict):
        return "in a form that is not JSON, as proxies do" if body else "without a reason"
    error = body.get("error", body)
    if isinstance(error, dict):
        named = [str(error[name]) for name in ("type", "reason", "Message", "message") if error.get(name)]
        error = ": ".join(named) or "without a reason"
    return str(error).partition(" Preview of field's value")[0][:_REASON]


def _transport(address: SearchAddress) -> Any:
    try:
        from elastic_transport import JsonSerializer, NodeConfig, SerializationError, TextSerializer, Transport
    except ImportError:
        raise AuditError(
            "the audit index in Elasticsearch needs elastic-transport; run pip install"
            " 'airflow-ai-provider[elasticsearch]'"
        ) from None

    class Lenient(JsonSerializer):
        """Gives text for what is not JSON: a proxy's page comes with a status that says more."""

        def loads(self, data: bytes) -> Any:
            try:
                return super().loads(data)
            except SerializationError:
                return data.decode("utf-8", "replace")

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
    serializers = {Lenient.mimetype: Lenient(), "application/*": TextSerializer()}
    return Transport([node], serializers=serializers, max_retries=0, meta_header=False)


def _authorization(address: SearchAddress) -> dict[str, str]:
    from elastic_transport.client_utils import basic_auth_to_header

    if address.api_key:
        return {"authorization": f"ApiKey {address.api_key}"}
    if address.user and address.password:
        return {"authorization": basic_auth_to_header((address.user, address.password))}
    return {}
