"""No file that is not exactly a sealed snapshot is ever served, and the error says which check failed."""

import os
import struct
from pathlib import Path

import pytest
import snapshots
from resealing import FIELDS, HEADER, SECTION, VERSION, put, resealed, section, with_header_checksum

from kserve import Snapshot, SnapshotError
from kserve._mapping import SECTIONS, version_name


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    rows = [
        {
            "profile_id": i * 1_000_003,
            "score": 1 + i % 9900 / 100 if i % 50 else None,
            "day_change": i % 7 / 100,
            "location": ["US/New York", "FR", None][i % 3],
            "topics": [{"topic": f"t{i % 9}", "score": 20.0}, {"topic": "all", "score": None}],
            "network_score": 10.0,
            "true_reach": i,
            "nick": f"nick {i}",
            "tw_name": f"name{i}",
            "influencers": [0, i],
        }
        for i in range(500)
    ]
    return Path(snapshots.publish(tmp_path_factory.mktemp("data"), rows).path).read_bytes()


def refused(path, content, check):
    with pytest.raises(SnapshotError) as caught:
        Snapshot(put(path, content)).verify()
    assert caught.value.check == check
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 6


def test_whole_and_resealed_files_are_taken(tmp_path, content):
    Snapshot(put(tmp_path / "a", content)).verify()
    assert resealed(content) == content


def test_every_byte_of_the_header_counts(tmp_path, content):
    path = put(tmp_path / "flipped", content)
    for at in range(HEADER):
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(bytes([content[at] ^ 1 << at % 8]))
        with pytest.raises(SnapshotError) as caught:
            Snapshot(path)
        assert caught.value.check in {"magic", "format", "byte order", "header checksum"}, at
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(content[at : at + 1])
    Snapshot(path).verify()


def test_every_section_is_covered_by_its_checksum(tmp_path, content):
    for name in SECTIONS:
        offset, length = section(content, name)
        for at in {offset, offset + length // 2, offset + length - 1} if length else ():
            damaged = bytearray(content)
            damaged[at] ^= 0x10
            refused(tmp_path / "flipped", bytes(damaged), "section checksum")


def test_bytes_between_sections_are_zero(tmp_path, content):
    ends = [sum(section(content, name)) for name in ("known", "topic_table", "details", "topic_starts")]
    gaps = [end for end in ends if end % 64]
    assert gaps
    for at in gaps:
        damaged = bytearray(content)
        damaged[at] = 1
        refused(tmp_path / "gap", bytes(damaged), "padding")


def test_a_file_cut_at_any_page_or_near_its_end(tmp_path, content):
    for length in [*range(HEADER, len(content), 4096), len(content) - 1, len(content) - 64]:
        refused(tmp_path / "cut", content[:length], "size")
    for length in (0, 1, 100, HEADER - 1):
        refused(tmp_path / "cut", content[:length], "size")


def test_a_longer_file(tmp_path, content):
    for more in (1, 64, 4096):
        refused(tmp_path / "long", content + bytes(more), "size")


def test_other_things_than_a_snapshot(tmp_path, content):
    with pytest.raises(SnapshotError, match="regular file"):
        Snapshot(tmp_path)
    refused(tmp_path / "zeros", bytes(len(content)), "magic")
    refused(tmp_path / "unsealed", bytes(HEADER) + content[HEADER:], "magic")
    with pytest.raises(FileNotFoundError):
        Snapshot(tmp_path / "nowhere")


def patched(content, offset, form, *values):
    image = bytearray(content)
    struct.pack_into(form, image, offset, *values)
    return resealed(bytes(image))


def test_other_versions_and_machines(tmp_path, content):
    refused(tmp_path / "format", patched(content, 8, "<I", 2), "format")
    refused(tmp_path / "order", patched(content, 12, ">I", 0x04030201), "byte order")
    image = bytearray(content)
    image[VERSION.start : VERSION.start + 4] = b"1999"
    refused(tmp_path / "name", with_header_checksum(image), "version")


def test_headers_that_contradict_the_file(tmp_path, content):
    at = {"profiles": 72, "scored": 80, "lines": 88, "longest_probe": 96, "topic_entries": 104, "identities": 112}
    refused(tmp_path / "h", patched(content, 16, "<Q", len(content) + 64), "size")
    refused(tmp_path / "h", patched(content, at["lines"], "<Q", 0), "lines")
    for lines in (1, 2**40, 2**62, 2**62 + len(content) // 64):
        refused(tmp_path / "h", patched(content, at["lines"], "<Q", lines), "lines")
    refused(tmp_path / "h", patched(content, at["longest_probe"], "<Q", 0), "lines")
    refused(tmp_path / "h", patched(content, at["longest_probe"], "<Q", 2**40), "lines")
    refused(tmp_path / "h", patched(content, at["topic_entries"], "<Q", 3), "section table")
    refused(tmp_path / "h", patched(content, at["profiles"], "<Q", 499), "counts")
    refused(tmp_path / "h", patched(content, at["scored"], "<Q", 500), "counts")
    refused(tmp_path / "h", patched(content, at["identities"], "<Q", 1), "counts")


def test_section_tables_that_point_elsewhere(tmp_path, content):
    for number in range(17):
        at = FIELDS.size + SECTION.size * number
        offset, length, checksum = SECTION.unpack_from(content, at)
        if not length:
            continue
        for other in ((offset + 64, length), (offset, length + 64), (0, length), (2**63, length), (offset, 2**63)):
            image = bytearray(content)
            SECTION.pack_into(image, at, *other, checksum)
            image[VERSION] = version_name(bytes(image[:HEADER])).encode().ljust(40, b"\0")
            refused(tmp_path / "table", with_header_checksum(image), "section table")


def slot_of(content, profile_id):
    """Line offset and place in the line."""
    offset, length = section(content, "lines")
    for line in range(offset, offset + length, 64):
        for k in range(4):
            if (
                struct.unpack_from("<Q", content, line + 8 * k)[0] == profile_id
                and content[line + 32 + 2 * k :][:2] != b"\0\0"
            ):
                return line, k
    raise AssertionError(profile_id)


def test_contents_that_cannot_be(tmp_path, content):
    line, k = slot_of(content, 1_000_003)
    slot = (line - section(content, "lines")[0]) // 64 * 4 + k
    scores, locations = section(content, "scores")[0], section(content, "locations")[0]
    both = bytearray(content)
    for value, check in ((0xFFFE, "scores"), (10001, "scores"), (99, "scores")):
        struct.pack_into("<H", both, line + 32 + 2 * k, value)
        struct.pack_into("<H", both, scores + 2 * slot, value)
        refused(tmp_path / "score", resealed(bytes(both)), check)
    refused(tmp_path / "column", patched(content, scores + 2 * slot, "<H", 5000), "scores")
    refused(tmp_path / "change", patched(content, line + 40 + 2 * k, "<h", 10000), "changes")
    refused(tmp_path / "place", patched(content, line + 8 * k, "<Q", 999), "lines")
    refused(tmp_path / "location", patched(content, locations + 4 * slot, "<I", 77), "locations")
    refused(tmp_path / "topic", patched(content, section(content, "topic_ids")[0], "<H", 500), "topics")
    refused(tmp_path / "topic", patched(content, section(content, "topic_ids")[0], "<H", 0), "topics")
    refused(tmp_path / "topics", patched(content, section(content, "topic_counts")[0] + slot, "<B", 3), "topics")
    refused(tmp_path / "starts", patched(content, section(content, "topic_starts")[0] + 8, "<Q", 2**60), "topics")
    refused(
        tmp_path / "details", patched(content, section(content, "detail_starts")[0] + 8 * slot, "<Q", 2**60), "details"
    )
    refused(tmp_path / "known", patched(content, section(content, "known")[0] + 8, "<Q", 4242), "known answers")
    refused(
        tmp_path / "table", patched(content, section(content, "topic_table")[0], "<B", 0xC1), "topic or location table"
    )


def test_identities_that_point_nowhere(tmp_path, content):
    offset, length = section(content, "identities")
    entry = next(at for at in range(offset, offset + length, 8) if content[at : at + 8] != bytes(8))
    refused(tmp_path / "identity", patched(content, entry, "<Q", (2**39 << 24) | 1), "identities")


def test_reads_of_damage_that_was_not_looked_for_raise(tmp_path, content):
    """Opened with its structure checked only, a damaged file gives errors, not memory of something else."""
    line, k = slot_of(content, 1_000_003)
    slot = (line - section(content, "lines")[0]) // 64 * 4 + k
    starts = Snapshot(
        put(tmp_path / "a", patched(content, section(content, "detail_starts")[0] + 8 * slot, "<Q", 2**60))
    )
    with pytest.raises(SnapshotError, match="details"):
        starts.get(1_000_003)
    topics = Snapshot(
        put(tmp_path / "b", patched(content, section(content, "topic_starts")[0] + slot // 4 * 8, "<Q", 2**60))
    )
    for read in (lambda: topics.get(1_000_003), lambda: topics.count({"any_topics": ["all"]})):
        with pytest.raises(SnapshotError, match="topics"):
            read()
    places = Snapshot(put(tmp_path / "c", patched(content, section(content, "locations")[0] + 4 * slot, "<I", 2**31)))
    assert not places.eligible({"locations": ["US"]}, 1_000_003)
    with pytest.raises(SnapshotError, match="locations"):
        places.get(1_000_003)
    numbers = Snapshot(put(tmp_path / "d", patched(content, section(content, "topic_ids")[0], "<H", 60000)))
    with pytest.raises(SnapshotError, match="topics"):
        [numbers.get(i * 1_000_003) for i in range(500)]


def test_a_file_that_is_replaced_or_unlinked_while_it_is_read(tmp_path, content):
    path = put(tmp_path / "live", content)
    snapshot = Snapshot(path)
    put(tmp_path / "new", resealed(content[:HEADER] + content[HEADER:]))
    os.replace(tmp_path / "new", path)
    snapshot.verify()
    path.unlink()
    snapshot.verify()
    assert snapshot.score(1_000_003) == 1.01
