"""A contract double of Elasticsearch's data streams: as strict as the server where a client could get it wrong.

What it holds clients to (Elasticsearch reference, 8.x and 9.x):

* ``compatible-with`` headers: the server's major version or the one before, the same in Accept and Content-Type;
* every response names the product (``X-Elastic-Product``);
* a bulk body ends in a newline; a data stream takes ``create`` only; ``_id`` is unique in one backing index, not in
  the stream; a document that does not fit the strict mapping is refused by itself, the others are taken;
* a document is found only after a refresh;
* 429 for single documents, 413 for large bodies, 401 without the login;
* what a managed server or a proxy before it refuses, by method and path (``refuse``); plain indices.

Not in it: more of the query language than the product uses, more than one node, time.
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from aiohttp import web

from support.web_server import WebThread

_MEDIA = re.compile(r"application/(?:vnd\.elasticsearch\+)?(json|x-ndjson)(?:; *compatible-with=(\d+))?")
Document = dict[str, Any]


@dataclass
class BackingIndex:
    """One of a stream's indices."""

    name: str
    documents: dict[str, Document] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    refreshed: int = 0
    """Documents that searches see: those added before the last refresh."""

    def add(self, key: str, document: Document) -> None:
        self.positions[key] = len(self.documents)
        self.documents[key] = document

    def visible(self, keys: Iterable[str] | None = None) -> Iterator[tuple[str, Document]]:
        """What searches see, all of it or these keys."""
        for key in self.documents if keys is None else keys:
            if self.positions.get(key, self.refreshed) < self.refreshed:
                yield key, self.documents[key]


class Refusal(Exception):
    def __init__(self, status: int, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.body = {"error": {"type": kind, "reason": reason}, "status": status}


class SearchDouble(WebThread):
    """``rejected`` is the share of documents answered with 429; ``without_lifecycle`` makes it an OpenSearch.

    ``refuse`` maps a regular expression over ``METHOD /path`` to status and body; a body of text is sent as HTML.
    """

    def __init__(
        self,
        *,
        major: int = 9,
        rejected: float = 0.0,
        largest: int = 100 * 2**20,
        login: tuple[str, str] | None = None,
        without_lifecycle: bool = False,
        poison: Collection[str] = (),
        refuse: Mapping[str, tuple[int, Any]] | None = None,
        takes_ids: bool = True,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.major = major
        self.rejected = rejected
        self.largest = largest
        self.templates: dict[str, Any] = {}
        self.lifecycles: dict[str, Any] = {}
        self.streams: dict[str, list[BackingIndex]] = {}
        self.outcomes: Counter[str] = Counter()
        self.sizes: list[int] = []
        """Documents in each bulk request."""
        self.poison = poison
        """Ids of documents that never fit."""
        self.refuse = dict(refuse or {})
        self.indices: dict[str, Any] = {}
        """Mappings of plain indices."""
        self.takes_ids = takes_ids
        self.hold_after: int | None = None
        """Once so many documents were taken, requests get no answer until this is ``None``."""
        self._login = login
        self._has_lifecycle = not without_lifecycle
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    # -- for tests

    def documents(self, stream: str) -> list[Document]:
        """Everything in the stream, copies included."""
        return [document for index in self.streams.get(stream, ()) for document in index.documents.values()]

    def rollover(self, stream: str) -> None:
        with self._lock:
            indices = self.streams[stream]
            indices.append(BackingIndex(f".ds-{stream}-{len(indices) + 1:06d}"))

    # -- requests

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        while self.hold_after is not None and self.outcomes["201"] >= self.hold_after:  # noqa: ASYNC110 - a test's thread sets it
            await asyncio.sleep(0.01)
        with self._lock:
            try:
                status, body = self._answer(request, raw)
            except Refusal as refusal:
                status, body = refusal.status, refusal.body
        headers = {"X-Elastic-Product": "Elasticsearch"}
        if isinstance(body, str):
            return web.Response(status=status, text=body, content_type="text/html")
        return web.Response(status=status, headers=headers, body=orjson.dumps(body), content_type="application/json")

    def _answer(self, request: web.BaseRequest, raw: bytes) -> tuple[int, Any]:
        for pattern, answer in self.refuse.items():
            if re.fullmatch(pattern, f"{request.method} {request.path}"):
                return answer
        self._check_login(request)
        if len(raw) > self.largest:
            raise Refusal(413, "content_too_long", "entity content is too long")
        self._check_media(request, raw)
        path = request.path.strip("/").split("/")
        match request.method, path:
            case "GET", [""]:
                return 200, {"cluster_uuid": "double", "version": {"number": f"{self.major}.0.0"}}
            case method, ["_ilm", "policy", name] if self._has_lifecycle:
                return self._stored(self.lifecycles, method, name, raw)
            case method, ["_index_template", name]:
                return self._template(method, name, raw)
            case method, ["_data_stream", name]:
                return self._data_stream(method, name)
            case (("PUT" | "DELETE"), [name]):
                return self._plain_index(request.method, name, raw)
            case "PUT", [name, "_mapping"]:
                self._indices(name)
                return 200, {"acknowledged": True}
            case "POST", [name, "_bulk"]:
                return self._bulk(name, raw)
            case "POST", [name, "_refresh"]:
                for index in self._indices(name):
                    index.refreshed = len(index.documents)
                return 200, {}
            case (("GET" | "POST"), [name, "_count"]):
                return 200, {"count": len(self._visible(name))}
            case "POST", [name, "_search"]:
                return 200, self._search(name, orjson.loads(raw), "ignore_unavailable" in request.query)
            case method, _:
                text = f"no handler found for uri [{request.path}] and method [{method}]"
                return 400, {"error": text}

    def _check_login(self, request: web.BaseRequest) -> None:
        if self._login is None:
            return
        expected = base64.b64encode(":".join(self._login).encode()).decode()
        if request.headers.get("Authorization") != f"Basic {expected}":
            raise Refusal(401, "security_exception", "unable to authenticate")

    def _check_media(self, request: web.BaseRequest, raw: bytes) -> None:
        accept = self._version(request.headers.get("Accept", "application/json"))
        if not raw:
            return
        given = request.headers.get("Content-Type")
        if given is None or self._version(given) != accept:
            raise Refusal(400, "media_type_header_exception", "Accept and Content-Type do not fit each other")

    def _version(self, media: str) -> str | None:
        found = _MEDIA.fullmatch(media)
        if found is None:
            raise Refusal(406, "media_type_header_exception", f"media type [{media}] is not supported")
        version = found[2]
        if version is not None and int(version) not in (self.major, self.major - 1):
            raise Refusal(400, "media_type_header_exception", f"A compatible version is required, got {version}")
        return version

    def _stored(self, where: dict[str, Any], method: str, name: str, raw: bytes) -> tuple[int, Any]:
        if method == "PUT":
            where[name] = orjson.loads(raw)
            return 200, {"acknowledged": True}
        if name not in where:
            raise Refusal(404, "resource_not_found_exception", f"{name} not found")
        return 200, {name: where[name]}

    def _template(self, method: str, name: str, raw: bytes) -> tuple[int, Any]:
        if method == "PUT":
            wanted = orjson.loads(raw)["template"].get("settings", {}).get("index.lifecycle.name")
            if wanted is not None and not self._has_lifecycle:
                raise Refusal(400, "illegal_argument_exception", "unknown setting [index.lifecycle.name]")
        return self._stored(self.templates, method, name, raw)

    def _data_stream(self, method: str, name: str) -> tuple[int, Any]:
        if method == "PUT":
            if name in self.streams:
                raise Refusal(400, "resource_already_exists_exception", f"data_stream [{name}] already exists")
            self._make_stream(name)
        elif name not in self.streams:
            raise Refusal(404, "index_not_found_exception", f"no such index [{name}]")
        elif method == "DELETE":
            del self.streams[name]
        return 200, {"acknowledged": True}

    def _plain_index(self, method: str, name: str, raw: bytes) -> tuple[int, Any]:
        if method == "PUT":
            if name in self.streams:
                raise Refusal(400, "resource_already_exists_exception", f"index [{name}] already exists")
            self.indices[name] = orjson.loads(raw)["mappings"]
            self.streams[name] = [BackingIndex(name)]
        else:
            self._indices(name)
            del self.streams[name], self.indices[name]
        return 200, {"acknowledged": True}

    def _make_stream(self, name: str) -> None:
        if self._mapping(name) is None:
            raise Refusal(
                400, "illegal_argument_exception", f"no matching index template found for data stream [{name}]"
            )
        self.streams[name] = [BackingIndex(f".ds-{name}-000001")]

    def _mapping(self, stream: str) -> Mapping[str, Any] | None:
        if stream in self.indices:
            plain: Mapping[str, Any] = self.indices[stream]
            return plain
        for template in self.templates.values():
            for pattern in template["index_patterns"]:
                if "data_stream" in template and re.fullmatch(pattern.replace("*", ".*"), stream):
                    mappings: Mapping[str, Any] = template["template"]["mappings"]
                    return mappings
        return None

    def _indices(self, stream: str) -> list[BackingIndex]:
        if stream not in self.streams:
            raise Refusal(404, "index_not_found_exception", f"no such index [{stream}]")
        return self.streams[stream]

    # -- writing

    def _bulk(self, stream: str, raw: bytes) -> tuple[int, Any]:
        if not raw.endswith(b"\n"):
            raise Refusal(400, "illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]")
        if stream not in self.streams:
            self._make_stream(stream)
        lines = raw.splitlines()
        self.sizes.append(len(lines) // 2)
        items = [self._item(stream, orjson.loads(lines[i]), lines[i + 1]) for i in range(0, len(lines), 2)]
        errors = any(result["status"] >= 300 for item in items for result in item.values())
        return 200, {"took": 1, "errors": errors, "items": items}

    def _item(self, stream: str, action: Document, source: bytes) -> Document:
        ((operation, about),) = action.items()
        status, error = self._write(stream, operation, about["_id"], source)
        self.outcomes[str(status)] += 1
        result = {"_index": self.streams[stream][-1].name, "_id": about["_id"], "status": status}
        return {operation: result | ({"error": error} if error else {"result": "created"})}

    def _write(self, stream: str, operation: str, key: str, source: bytes) -> tuple[int, Document | None]:
        if operation != "create":
            reason = "only write ops with an op_type of create are allowed in data streams"
            return 400, {"type": "illegal_argument_exception", "reason": reason}
        if not self.takes_ids:
            reason = "Document ID is not supported in create/index operation request"
            return 400, {"type": "illegal_argument_exception", "reason": reason}
        if self._random.random() < self.rejected:
            return 429, {"type": "es_rejected_execution_exception", "reason": "rejected execution of primary operation"}
        index, document = self.streams[stream][-1], orjson.loads(source)
        if key in index.documents:
            reason = f"[{key}]: version conflict, document already exists (current version [1])"
            return 409, {"type": "version_conflict_engine_exception", "reason": reason}
        mapping = self._mapping(stream)
        assert mapping is not None
        if key in self.poison:
            return 400, {"type": "document_parsing_exception", "reason": "failed to parse"}
        if problem := misfit(document, mapping):
            return 400, problem
        index.add(key, document)
        return 201, None

    # -- reading

    def _visible(self, stream: str, keys: Iterable[str] | None = None) -> list[tuple[str, Document]]:
        return [each for index in self._indices(stream) for each in index.visible(keys)]

    def _search(self, stream: str, body: Document, ignore_unavailable: bool) -> Document:
        if ignore_unavailable and stream not in self.streams:
            return {"hits": {"hits": []}}
        query = body.get("query", {"match_all": {}})
        fits, keys = matcher(query), query.get("terms", {}).get("event.id")
        found = [(key, document) for key, document in self._visible(stream, keys) if fits(document)]
        order = [next(iter(each.items())) for each in body.get("sort", ())]
        hits = [
            {"_id": key, "_source": document, "sort": [document[name] for name, _ in order]} for key, document in found
        ]
        if order:
            assert {direction for _, direction in order} == {"desc"}
            hits.sort(key=lambda hit: hit["sort"], reverse=True)
        if "search_after" in body:
            hits = [hit for hit in hits if hit["sort"] < body["search_after"]]
        if body.get("_source") is False:
            hits = [{"_id": hit["_id"]} for hit in hits]
        return {"hits": {"hits": hits[: body.get("size", 10)]}}


def misfit(document: Document, mapping: Mapping[str, Any]) -> Document | None:
    """Why a document does not fit a strict mapping."""
    if "@timestamp" not in document:
        reason = "data stream timestamp field [@timestamp] is missing"
        return {"type": "document_parsing_exception", "reason": reason}
    for name, value in document.items():
        node: Mapping[str, Any] | None = mapping
        for part in name.split("."):
            node = node.get("properties", {}).get(part) if node else None
        if node is None:
            reason = f"mapping set to strict, dynamic introduction of [{name}] within [_doc] is not allowed"
            return {"type": "strict_dynamic_mapping_exception", "reason": reason}
        if not _TAKES[node["type"]](value):
            reason = (
                f"failed to parse field [{name}] of type [{node['type']}] in document."
                f" Preview of field's value: '{value}'"
            )
            return {"type": "document_parsing_exception", "reason": reason}
    return None


def matcher(query: Document) -> Callable[[Document], bool]:
    """A query as a predicate."""
    ((kind, about),) = query.items()
    match kind:
        case "match_all":
            return lambda document: True
        case "bool":
            parts = [matcher(each) for each in about["filter"]]
            return lambda document: all(part(document) for part in parts)
        case "term" | "terms":
            ((name, wanted),) = about.items()
            values = set(wanted) if kind == "terms" else {wanted}
            return lambda document: document.get(name) in values
        case "range":
            ((name, span),) = about.items()
            low, high = (datetime.fromisoformat(span[key]) if key in span else None for key in ("gte", "lt"))
            return lambda document: _between(low, datetime.fromisoformat(document[name]), high)
    raise Refusal(400, "parsing_exception", f"unknown query [{kind}]")


def _between(low: datetime | None, moment: datetime, high: datetime | None) -> bool:
    return (low is None or low <= moment) and (high is None or moment < high)


def _is_date(value: Any) -> bool:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


_TAKES: Mapping[str, Callable[[Any], bool]] = {
    "keyword": lambda value: isinstance(value, str | int | bool),
    "long": lambda value: type(value) is int and -(2**63) <= value < 2**63,
    "boolean": lambda value: type(value) is bool,
    "date": _is_date,
}
