"""Known keys: the hash against published vectors and a plain oracle, and the table against a dictionary."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve._keyring import SCOPE_BITS, Keyring, siphash, tag_of_key
from kserve.serving.keys import SCOPES
from kserve.settings import TIERS, Tier

VECTORS = {
    0: "a3817f04ba25a8e66df67214c7550293",
    1: "da87c1d86b99af44347659119b22fc45",
    7: "a1f1ebbed8dbc153c0b84aa61ff08239",
    8: "3b62a9ba6258f5610f83e264f31497b4",
    15: "5493e99933b0a8117e08ec0f97cfc3d9",
    31: "2939b0183223fafc1723de4f52c43d35",
    58: "57fca5de98a9d6d8006438d0583d8a1d",
    59: "9fecde1cefdc1cbed4763674d9575359",
    63: "5150d1772f50834a503e069a973fbd7c",
}
"""Of the reference implementation, by length: key 00 01 .. 0f, text 00 01 .. ."""

WORD = 2**64 - 1
KEY = bytes(range(16))
MADE = st.integers(0, 40)


def oracle(key: bytes, text: bytes) -> bytes:
    """SipHash-2-4 of 128 bits, as its paper has it."""
    k0, k1 = (int.from_bytes(key[i : i + 8], "little") for i in (0, 8))
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def turned(word: int, bits: int) -> int:
        return (word << bits | word >> (64 - bits)) & WORD

    def rounds(n: int) -> None:
        for _ in range(n):
            v[0] = (v[0] + v[1]) & WORD
            v[1] = turned(v[1], 13) ^ v[0]
            v[0] = turned(v[0], 32)
            v[2] = (v[2] + v[3]) & WORD
            v[3] = turned(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & WORD
            v[3] = turned(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & WORD
            v[1] = turned(v[1], 17) ^ v[2]
            v[2] = turned(v[2], 32)

    padded = text + bytes(-(len(text) + 1) % 8) + bytes([len(text) % 256])
    for i in range(0, len(padded), 8):
        word = int.from_bytes(padded[i : i + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    halves = []
    for position, mark in ((2, 0xEE), (1, 0xDD)):
        v[position] ^= mark
        rounds(4)
        halves.append((v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little"))
    return b"".join(halves)


def key_id(number: int) -> str:
    return f"{number:012d}"


def text_of(number: int, secret: str = "s") -> str:
    """A key's text, as far as a keyring looks at it."""
    return f"ks_live_{key_id(number)}_{secret * 38}"


def add(ring: Keyring, number: int, secret: str = "s", expires: int = 0, limit: Tier = TIERS["partner"]) -> None:
    ring.add(
        text_of(number, secret),
        (number, secret),
        key_id=key_id(number),
        scopes=1,
        tier=0,
        limit=limit,
        expires=expires,
    )


@pytest.mark.parametrize("length", VECTORS)
def test_published_vectors(length: int) -> None:
    assert siphash(KEY, bytes(range(length))).hex() == oracle(KEY, bytes(range(length))).hex() == VECTORS[length]


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=300))
def test_hash_is_that_of_the_paper(key: bytes, text: bytes) -> None:
    assert siphash(key, text) == oracle(key, text)


@given(st.lists(st.tuples(st.sampled_from(["add", "again", "forget", "forget all"]), MADE), max_size=60))
def test_it_knows_what_a_dictionary_would(acts: list[tuple[str, int]]) -> None:
    ring, known = Keyring(), {}
    for act, number in acts:
        if act == "forget all":
            ring.forget()
            known.clear()
        elif act == "forget":
            ring.forget({key_id(number)})
            known = {text: holder for text, holder in known.items() if holder[0] != number}
        else:
            secret = "s" if act == "add" else "t"
            add(ring, number, secret)
            known[text_of(number, secret)] = (number, secret)
    every = [text_of(number, secret) for number in range(41) for secret in "st"]
    assert {text: ring.get(text) for text in every if ring.get(text) is not None} == known
    assert len(ring) == len(known) == ring.known("".join(every).encode())


def test_many_keys() -> None:
    ring = Keyring()
    for number in range(5000):
        add(ring, number)
    assert [ring.get(text_of(number)) for number in range(5000)] == [(number, "s") for number in range(5000)]
    assert ring.get(text_of(5000)) is None
    ring.forget({key_id(number) for number in range(0, 5000, 2)})
    assert len(ring) == 2500
    assert [ring.get(text_of(number)) is None for number in range(10)] == [True, False] * 5


@given(st.text(max_size=80))
def test_any_other_text_is_not_known(text: str) -> None:
    ring = Keyring()
    add(ring, 1)
    assert ring.get(text) is None


@pytest.mark.parametrize("place", range(59))
def test_one_wrong_character_is_another_key(place: int) -> None:
    ring = Keyring()
    add(ring, 1)
    text = text_of(1)
    assert ring.get(f"{text[:place]}#{text[place + 1 :]}") is None


def test_what_has_expired_is_not_known() -> None:
    ring = Keyring()
    now = int(time.time())
    for number, expires in enumerate([now - 1, now + 100, 0, 1]):
        add(ring, number, expires=expires)
    assert [ring.get(text_of(number)) is None for number in range(4)] == [True, False, False, True]


@pytest.mark.parametrize(("text", "number"), [("ks_live_", "1" * 12), ("x" * 60, "1" * 12), ("x" * 59, "1" * 11)])
def test_what_is_no_key_cannot_be_added(text: str, number: str) -> None:
    with pytest.raises(ValueError, match="59 characters"):
        Keyring().add(text, None, key_id=number, scopes=1, tier=0, limit=TIERS["site"])


def test_seeds_and_scopes() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Keyring(b"short")
    assert SCOPE_BITS.keys() == SCOPES.keys()
    assert sorted(SCOPE_BITS.values()) == [1 << place for place in range(len(SCOPES))]
    assert tag_of_key("a" * 12) != tag_of_key("b" * 12)


def test_readers_need_not_wait_for_who_changes_it() -> None:
    """What is never forgotten is found at every moment, by readers without the GIL."""
    ring = Keyring()
    for number in range(50):
        add(ring, number)
    kept = "".join(map(text_of, range(50))).encode() * 200
    counts: list[int] = []
    reader = threading.Thread(target=lambda: counts.extend(ring.known(kept) for _ in range(40)))
    reader.start()
    turn = 50
    while reader.is_alive():
        turn += 1
        add(ring, turn)
        ring.forget({key_id(turn - 30)} if turn > 80 + 50 else ())
    reader.join()
    assert counts == [50 * 200] * 40
