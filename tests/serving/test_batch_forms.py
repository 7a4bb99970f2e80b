"""The compiled forms of a batch: the same JSON as msgspec writes, byte for byte, and records that say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving.support import CROWD, FIRST_DAY, LARGEST, Answer, Server, publish, rows, scores, serving

from kserve._batch import RECORD, UNKNOWN_SCORE, UNSCORED_SCORE, ids_of_bytes, ids_of_json
from kserve.records import Status
from kserve.serving import bodies, models

DOCS = Path(__file__).parents[2] / "docs" / "http-api.md"
PATH = "/v3/scores/batch"
KNOWN = scores(rows(0.0))
BINARY = {"Content-Type": "application/octet-stream"}
NO_CHANGE = -32768

PLAIN_IDS = st.integers(0, LARGEST) | st.sampled_from(sorted(KNOWN)) | st.integers(0, 10**9)
SPACE = st.text(" \t\r\n", max_size=2)


@pytest.fixture(scope="module")
def every_score(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has every score there can be, and changes of every size."""
    days: list[dict[str, Any]] = []
    for hundredths in range(100, 10_001):
        day, week = (hundredths * 2) % 19_801 - 9900, None if hundredths % 7 == 0 else hundredths % 200 - 100
        changes = {"day_change": day / 100, "week_change": None if week is None else week / 100}
        days.append({"profile_id": hundredths, "score": hundredths / 100, **changes, "month_change": 0.0})
    folder = tmp_path_factory.mktemp("every")
    publish(folder / "data", days, FIRST_DAY)
    with serving(folder / "data", batch_limit=20_000) as server:
        yield server


def slowly(server: Server, ids: list[str]) -> Answer:
    """The answer that msgspec reads and writes: an escape is nothing that the compiled reader knows."""
    body = msgspec.json.encode({"ids": ids}).replace(b'"ids"', b'"\\u0069ds"')
    assert ids_of_json(body, len(ids)) is None
    return server.post(PATH, body)


def spaced(ids: list[int], space: list[str]) -> bytes:
    """A plain body with white space wherever JSON has it."""
    gaps = iter([*space, *[""] * (8 + 4 * len(ids))])
    items = ",".join(f'{next(gaps)}"{i}"{next(gaps)}' for i in ids)
    text = f'{next(gaps)}{{{next(gaps)}"ids"{next(gaps)}:{next(gaps)}[{items}{next(gaps)}]{next(gaps)}}}{next(gaps)}'
    return text.encode()


@settings(max_examples=150)
@given(ids=st.lists(PLAIN_IDS, max_size=40), space=st.lists(SPACE, max_size=30))
@example(ids=[0, 9, 10, 99999999, 100000000, 10**16 - 1, 10**16, LARGEST, LARGEST - 1], space=[])
def test_the_same_bytes_as_msgspec(server: Server, ids: list[int], space: list[str]) -> None:
    body = spaced(ids, space)
    asked = ids_of_json(body, 40)
    assert asked is not None
    assert asked.ids.tolist() == ids
    compiled = server.post(PATH, body)
    assert compiled.status == 200
    assert compiled.body == slowly(server, [str(i) for i in ids]).body


def test_every_score_and_change(every_score: Server) -> None:
    ids = [str(i) for i in range(99, 10_002)]
    compiled = every_score.post(PATH, {"ids": ids})
    assert compiled.body == slowly(every_score, ids).body
    assert b'"score":1.0,' in compiled.body
    assert b'"score":100.0,' in compiled.body


def test_ids_in_binary_out_as_json(server: Server) -> None:
    ids = [42, 7, 999, 0, LARGEST, 10**19]
    answer = server.post(PATH, np.array(ids, dtype="<u8").tobytes(), **BINARY, Accept="application/json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == slowly(server, [str(i) for i in ids]).body


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 80), st.sampled_from(list(b'0123456789"[]{},: \n\x00\x0b\x1f-+.eE\\usid\xff'))), max_size=3
)


@settings(max_examples=400)
@given(ids=st.lists(PLAIN_IDS, max_size=4), mutations=MUTATIONS, cut=st.integers(0, 100), insert=st.booleans())
def test_reads_nothing_that_msgspec_reads_otherwise(
    ids: list[int], mutations: list[tuple[int, int]], cut: int, insert: bool
) -> None:
    body = bytearray(spaced(ids, []))
    for at, byte in mutations:
        at %= len(body)
        body[at : at if insert else at + 1] = bytes([byte])
    content = bytes(body[:cut]) if cut < 60 else bytes(body)
    asked = ids_of_json(content, 8)
    if asked is None:
        return
    texts = msgspec.json.decode(content, type=models.BatchRequest).ids
    assert all(isinstance(text, str) for text in texts)
    assert asked.ids.tolist() == [bodies.parse_id(text) for text in texts]


@pytest.mark.parametrize(
    "text", ["", "00", "042", "18446744073709551616", "99999999999999999999", "1" * 21, "1" * 24, "0" * 24, "-1", "1 "]
)
def test_what_is_no_id_is_left_to_the_other_reader(server: Server, text: str) -> None:
    body = msgspec.json.encode({"ids": ["1", text, "2"]})
    assert ids_of_json(body, 10) is None
    assert server.post(PATH, body).json()["scores"][1]["status"] == "invalid"


def test_more_than_the_limit_is_left_to_the_other_reader() -> None:
    body = b'{"ids":["1","2","3"]}'
    assert ids_of_json(body, 2) is None
    assert ids_of_json(body, 3) is not None


@settings(max_examples=100)
@given(ids=st.lists(PLAIN_IDS, max_size=600))
def test_records(server: Server, ids: list[int]) -> None:
    answer = server.post(PATH, np.array(ids, dtype="<u8").tobytes(), **BINARY)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["kserve-version"] == server.store.version
    records = np.frombuffer(answer.body, dtype=RECORD)
    expected = server.store.get_many(np.array(ids, dtype=np.uint64), changes=True)
    assert expected.changes is not None
    assert (records["status"] == expected.status).all()
    assert (records["zero"] == 0).all()
    for record, points, changes in zip(records, expected.values, expected.changes, strict=True):
        missing = {Status.UNKNOWN: UNKNOWN_SCORE, Status.UNSCORED: UNSCORED_SCORE}.get(Status(record["status"]))
        assert record["score"] == (round(points * 100) if missing is None else missing)
        for name, change in zip(("day", "week", "month"), changes, strict=True):
            known = missing is None and change == change
            assert record[name] == (round(change * 100) if known else NO_CHANGE)


def test_no_missing_score_looks_like_one() -> None:
    assert min(UNKNOWN_SCORE, UNSCORED_SCORE) > 10_000
    assert UNKNOWN_SCORE != UNSCORED_SCORE
    assert RECORD.itemsize == 10


def test_records_for_json(server: Server) -> None:
    answer = server.post(PATH, {"ids": ["42", "7", "999"]}, Accept="application/octet-stream")
    records = np.frombuffer(answer.body, dtype=RECORD)
    assert records["status"].tolist() == [Status.SCORED, Status.UNSCORED, Status.UNKNOWN]
    assert records["score"].tolist() == [6231, UNSCORED_SCORE, UNKNOWN_SCORE]
    assert records[0].tolist() == (6231, 12, -30, NO_CHANGE, 2, 0)
    escaped = server.post(PATH, b'{"ids":["\\u0034\\u0032","7","999"]}', Accept="application/octet-stream")
    assert escaped.body == answer.body


def test_records_have_no_room_for_what_is_no_id(server: Server) -> None:
    answer = server.post(PATH, {"ids": ["42", "042"]}, Accept="application/octet-stream")
    assert (answer.status, answer.kind) == (422, "bad-body")
    assert "042" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/octet-stream"),
        ("application/octet-stream", "application/octet-stream"),
        ("application/json;q=0.9", "application/json"),
        ("application/json, application/octet-stream", "application/octet-stream"),
        ("text/html", "application/octet-stream"),
    ],
)
def test_accept(server: Server, accept: str, kind: str) -> None:
    answer = server.post(PATH, (42).to_bytes(8, "little"), **BINARY, Accept=accept)
    assert answer.headers["content-type"] == kind


@pytest.mark.parametrize("size", [1, 7, 9, 15, 4097])
def test_a_binary_body_that_is_cut_short(server: Server, size: int) -> None:
    answer = server.post(PATH, b"\1" * size, **BINARY)
    assert (answer.status, answer.kind) == (422, "bad-body")
    assert str(size) in answer.json()["detail"]


def test_binary_limits(server: Server) -> None:
    assert len(server.post(PATH, bytes(8 * 1000), **BINARY).body) == 10 * 1000
    assert server.post(PATH, bytes(8 * 1001), **BINARY).kind == "too-many-ids"
    assert server.post(PATH, b"", **BINARY).body == b""
    assert server.post("/v3/eligibility", bytes(8), **BINARY).kind == "unsupported-media-type"


def test_batches_are_counted(server: Server) -> None:
    seat = server.site.seat
    before = seat_counts(server)
    ids = [42, 7, 999, CROWD[0]]
    server.post(PATH, {"ids": [str(i) for i in ids]})
    server.post(PATH, np.array(ids, dtype="<u8").tobytes(), **BINARY)
    seat.flush()
    found = [after - earlier for after, earlier in zip(seat_counts(server), before, strict=True)]
    assert found == [4, 2, 2]


def seat_counts(server: Server) -> tuple[int, int, int]:
    server.site.seat.flush()
    (view,) = [seat for seat in server.site.roster.seats() if seat.place == server.site.seat.place]
    return view.served.scored, view.served.unscored, view.served.unknown


def test_ids_of_bytes() -> None:
    ids = np.array([0, 1, LARGEST], dtype=np.uint64)
    asked = ids_of_bytes(ids.tobytes())
    assert asked is not None
    assert asked.ids.tolist() == ids.tolist()
    assert ids_of_bytes(ids.tobytes()[:-1]) is None


def test_the_example_of_the_docs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (example_code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    exec(
        compile(example_code.replace("http://127.0.0.1:8080", f"http://127.0.0.1:{server.port}"), str(DOCS), "exec"), {}
    )
    assert capsys.readouterr().out.splitlines() == ["62.31 0.12", "no score", "no such profile"]
