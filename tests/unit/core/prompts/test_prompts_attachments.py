"""Images and files: only what the route names gets out, a batch holds no contents, a bad one costs its row only."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.pipeline.prepare import Preparer, RowRequest
from airflow_ai_provider.core.policy import Attachments, Route, parse_policy
from airflow_ai_provider.core.privacy.masking.masker import Masker, MaskingRules
from airflow_ai_provider.core.prompts.attachments import AttachmentReader
from airflow_ai_provider.core.prompts.templates import Renderer
from airflow_ai_provider.core.routing.router import Router, terms_of
from airflow_ai_provider.errors import PolicyError, PrivacyError, PromptError

PNG = b"\x89PNG\r\n\x1a\n" + b"picture" * 20
PDF = b"%PDF-1.7\n" + b"letter" * 20
CONTENTS = {
    "a.png": PNG,
    "b.jpg": b"\xff\xd8\xff\xe0jpeg",
    "c.gif": b"GIF89agif",
    "d.webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    "e.pdf": PDF,
}
PROMPT = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "{{ text }}"}, {"type": "image", "uri": "{{ uri }}"}],
    }
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, content in CONTENTS.items():
        (scans / name).write_bytes(content)
    (tmp_path / "secret.png").write_bytes(PNG)
    return scans


def route(*places: object, kinds: tuple[str, ...] = ("image", "file"), **more: Any) -> Route:
    allowed = Attachments.model_validate({"kinds": kinds, "from": [str(place) for place in places], **more})
    return Route(tiers={"simple": ("small",)}, masking="off", attachments=allowed)


def preparer(made: Route, prompt: Any = PROMPT, masker: Masker | None = None) -> Preparer:
    return over(made, prompt, masker)


def over(made: Route, prompt: Any = PROMPT, masker: Masker | None = None, **more: Any) -> Preparer:
    terms = {tier: terms_of(made, tier) for tier in made.tiers}
    return Preparer(Renderer(prompt), made, masker, Router("support", made, {}), terms, json=False, **more)


def prepare(made: Preparer, *rows: dict[str, Any]) -> list[Any]:
    full = [{"text": "What is it?", **row} for row in rows]
    return asyncio.run(made.prepare_many(full, [f"r{n}" for n in range(len(rows))]))


def one(made: Preparer, **row: Any) -> Any:
    return prepare(made, row)[0]


def wired(prepared: RowRequest) -> Any:
    return asyncio.run(_wire(prepared))


async def _wire(prepared: RowRequest) -> Any:
    return await prepared.wire_messages()


def as_pdf(uri: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "file", "uri": uri}]}]


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("a.png", "image/png"), ("b.jpg", "image/jpeg"), ("c.gif", "image/gif"), ("d.webp", "image/webp")],
)
def test_an_image_goes_on_the_wire_as_its_content(folder: Path, name: str, media_type: str) -> None:
    prepared = one(preparer(route(folder)), uri=f"{folder}/{name}")
    text, image = wired(prepared)[0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    encoded = base64.b64encode(CONTENTS[name]).decode()
    assert image == {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{encoded}"}}
    assert (prepared.needs.images, prepared.needs.files, prepared.text) == (1, 0, "What is it?")


def test_a_file_goes_without_its_name(folder: Path) -> None:
    prepared = one(preparer(route(folder), as_pdf("file://{{ uri }}")), uri=f"{folder}/e.pdf")
    (part,) = wired(prepared)[0]["content"]
    assert part["file"]["filename"] == "file-1.pdf"
    assert base64.b64decode(part["file"]["file_data"].removeprefix("data:application/pdf;base64,")) == PDF
    assert (prepared.needs.images, prepared.needs.files) == (0, 1)


def test_what_names_a_stored_answer_is_the_content_and_not_the_path(folder: Path) -> None:
    (folder / "copy.png").write_bytes(PNG)
    made = preparer(route(folder))
    first, copy, other = prepare(made, *({"uri": f"{folder}/{name}"} for name in ("a.png", "copy.png", "b.jpg")))
    assert first.messages == copy.messages != other.messages
    assert orjson.dumps(first.messages)
    assert str(folder) not in str(first.messages)
    assert first.evidence == copy.evidence != other.evidence


def test_a_batch_holds_no_contents(folder: Path) -> None:
    (folder / "big.png").write_bytes(PNG + b"x" * 5_000_000)
    made = prepare(preparer(route(folder)), *({"uri": f"{folder}/big.png"} for _ in range(20)))
    assert max(len(orjson.dumps(prepared.messages)) for prepared in made) < 500


def test_a_file_that_changed_after_it_was_hashed_is_not_sent(folder: Path) -> None:
    prepared = one(preparer(route(folder)), uri=f"{folder}/a.png")
    (folder / "a.png").write_bytes(PNG + b"!")
    with pytest.raises(PromptError, match=r"^image 1: it changed while its row was under way$"):
        wired(prepared)
    (folder / "a.png").unlink()
    with pytest.raises(PromptError, match=r"^image 1: no such file$"):
        wired(prepared)


def test_a_bad_one_costs_its_row_only(folder: Path) -> None:
    (folder / "big.png").write_bytes(PNG + bytes(1_000_000))
    (folder / "empty.png").write_bytes(b"")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe.png")
    names = ("a.png", "none.png", "e.pdf", "big.png", "empty.png", "sub", "pipe.png", "b.jpg")
    said = [
        str(made) if isinstance(made, Exception) else None
        for made in prepare(preparer(route(folder, max_mb=1)), *({"uri": f"{folder}/{name}"} for name in names))
    ]
    assert said == [
        None,
        "image 1: no such file",
        "image 1: not a PNG, JPEG, GIF or WebP, by its first bytes",
        "image 1: larger than the 1 MB of the route",
        "image 1: not a PNG, JPEG, GIF or WebP, by its first bytes",
        "image 1: no regular file",
        "image 1: no regular file",
        None,
    ]


def test_without_the_routes_permission_nothing_leaves(folder: Path) -> None:
    closed = Route(tiers={"simple": ("small",)}, masking="off")
    for made, kinds in ((closed, "image"), (route(folder, kinds=("file",)), "file, image")):
        found = one(preparer(made), uri=f"{folder}/a.png")
        assert isinstance(found, PrivacyError)
        assert str(found).startswith("the route lets no image out, since nothing in it can be masked")
        assert f"attachments: {{kinds: [{kinds}], from: [FOLDER]}}" in str(found)
    with pytest.raises(PrivacyError, match="the route lets no file out"):
        AttachmentReader(None).check_kinds(["file"])


OUTSIDE = [
    "{root}/secret.png",
    "{scans}/../secret.png",
    "{scans}/./a.png",
    "file://{scans}/../secret.png",
    "{scans}-more/a.png",
    "{scans}",
    "scans/a.png",
    "a.png",
    "~/a.png",
    "",
    "{scans}/a\0.png",
    "{scans}\\..\\secret.png",
    "simplecache::file://{scans}/a.png",
    "local://{scans}/a.png",
    "s3://bucket/a.png",
    "https://example.org/a.png",
    "data:image/png;base64,AAAA",
    "/proc/self/environ",
]


@pytest.mark.parametrize("uri", OUTSIDE)
def test_a_path_in_a_row_leads_nowhere_else(folder: Path, uri: str) -> None:
    found = one(preparer(route(folder)), uri=uri.format(root=folder.parent, scans=folder))
    assert isinstance(found, PrivacyError)
    assert "in none of the places that the route lets attachments out of" in str(found)
    assert "secret" not in str(found)


def test_a_link_leads_nowhere_else(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "folder").symlink_to(folder.parent)
    (folder / "inside.png").symlink_to(folder / "a.png")
    made = prepare(
        preparer(route(folder)),
        *({"uri": f"{folder}/{name}"} for name in ("link.png", "folder/secret.png", "inside.png")),
    )
    assert [isinstance(found, PrivacyError) for found in made] == [True, True, False]
    assert str(made[0]) == "image 1: a link leads out of the places that the route lets attachments out of"


def test_a_place_may_be_a_link_itself(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder)
    assert isinstance(one(preparer(route(tmp_path / "alias")), uri=f"{tmp_path}/alias/a.png"), RowRequest)


@given(st.lists(st.sampled_from(["..", ".", "a.png", "x", "", "%2e%2e", "scans"]), max_size=6).map("/".join))
def test_no_path_gets_out_of_its_place(rest: str) -> None:
    reader = AttachmentReader(route("/data/scans", "https://cdn.example/p").attachments)
    for base in ("/data/scans", "file:///data/scans", "https://cdn.example/p"):
        uri = f"{base}/{rest}"
        try:
            reader.refer("image", uri, "image 1", lambda text: True)
        except PrivacyError:
            continue
        read = uri.replace("%2e", ".") if base.startswith("https") else uri  # %2e is a name like any other in a folder
        assert os.path.normpath(read).startswith(os.path.normpath(base))
        assert ".." not in read.split("/")


# Web addresses are the vendor's to fetch.


def web(uri: str, masker: Masker | None = None) -> Any:
    return one(preparer(route("https://cdn.example/public", kinds=("image", "file")), masker=masker), uri=uri)


def test_a_web_address_is_passed_on_as_it_is() -> None:
    prepared = web("https://CDN.example/public/a.png?size=2")
    part = {"type": "image_url", "image_url": {"url": "https://CDN.example/public/a.png?size=2"}}
    assert wired(prepared)[0]["content"][1] == part
    assert prepared.messages[0]["content"][1] == part
    assert prepared.needs.images == 1


@pytest.mark.parametrize(
    "uri",
    [
        "https://cdn.example/private/a.png",
        "https://cdn.example/public/../private/a.png",
        "https://cdn.example/public/%2E%2e/private/a.png",
        "https://cdn.example/public/..%2fprivate/a.png",
        "https://cdn.example@evil.example/public/a.png",
        "https://evil.example/public/a.png",
        "http://cdn.example/public/a.png",
        "https://cdn.example:444/public/a.png",
        "https://cdn.example/public/a\n.png",
    ],
)
def test_a_web_address_leads_nowhere_else(uri: str) -> None:
    assert isinstance(web(uri), PrivacyError)


def test_an_address_that_masking_would_change_is_not_sent() -> None:
    masker = Masker(MaskingRules(detect=frozenset({"email"})), b"k" * 32, "s")
    found = web("https://cdn.example/public/ann@example.com.png", masker)
    assert isinstance(found, PrivacyError)
    assert str(found) == "image 1: its address holds a personal value or a secret, and is not sent"
    assert isinstance(web("https://cdn.example/public/7.png", masker), RowRequest)


def test_a_file_by_web_address_is_refused() -> None:
    made = preparer(route("https://cdn.example"), as_pdf("{{ uri }}"))
    found = one(made, uri="https://cdn.example/a.pdf")
    assert "only images are passed on by web address" in str(found)


def test_texts_of_parts_are_masked_and_guarded(folder: Path) -> None:
    masker = Masker(MaskingRules(detect=frozenset({"email"})), b"k" * 32, "s")
    prepared = one(preparer(route(folder), masker=masker), uri=f"{folder}/a.png", text="to ann@example.com")
    assert "ann@" not in str(prepared.messages)
    assert prepared.restored(prepared.text) == "to ann@example.com"


# The policy.


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("scans", "expected an absolute folder"),
        ("/", "expected an absolute folder"),
        ("file://data", "expected an absolute folder"),
        ("s3://", "expected an absolute folder"),
        ("sftp://host/x", "sftp:// cannot be used"),
        ("/data/../x", "expected a plain folder"),
        ("/data/*.png", "expected a plain folder"),
        ("https://user@host/x", "expected a plain folder"),
        ("https://host/x?y=1", "expected a plain folder"),
    ],
)
def test_a_place_that_could_mean_more_is_refused(place: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        parse_policy(POLICY.replace("PLACE", place))


def test_places_of_all_kinds_are_taken() -> None:
    for place in ("/data/scans/", "file:///data", "s3://bucket", "abfs://c@account/x", "https://cdn.example"):
        parse_policy(POLICY.replace("PLACE", place))
    with pytest.raises(PolicyError):
        parse_policy(POLICY.replace("[image]", "[]").replace("PLACE", "/data"))


POLICY = """
version: 1
deployments:
  small: {model: offline/extractive}
routes:
  r: {tiers: {simple: [small]}, masking: off, attachments: {kinds: [image], from: ["PLACE"]}}
budgets: [{period: day, limit_usd: 1}]
"""


# Object stores.


def test_an_object_is_read_as_a_file_is_and_what_fails_names_no_path(s3_options: dict[str, Any]) -> None:
    import s3fs

    store = s3fs.S3FileSystem(**s3_options)
    store.pipe_file("rows/scans/a.png", PNG)
    made = over(route("s3://rows/scans"), storage_options=s3_options)
    uris = [f"s3://rows/scans/{name}" for name in ("a.png", "private-name.png", "../keys/a.png")]
    found, missing, outside = prepare(made, *({"uri": uri} for uri in uris))
    assert wired(found)[0]["content"][1]["image_url"]["url"].endswith(base64.b64encode(PNG).decode())
    assert str(missing) == "image 1: no such file"
    assert isinstance(outside, PrivacyError)


def test_a_store_that_cannot_be_reached_is_an_error_of_the_row() -> None:
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}
    options["config_kwargs"] = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    made = over(route("s3://rows/scans"), storage_options=options)
    found = one(made, uri="s3://rows/scans/private-name.png")
    assert isinstance(found, PromptError)
    assert "private-name" not in str(found)
    assert "try again" in str(found)
