"""Taxonomies: Klout's files with all their faults, plain ones, and those that cannot be taken."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve.errors import InputError
from kserve.snapshots.taxonomy import Taxonomy

KLOUT = Path(__file__).parents[3] / "shared" / "data" / "klout_topics"

TOPICS = """\
topicId,topicSlug,topicDisplayName,wikiItemId
1,music,Music,Q1
10000000000000020305,jazz,Jazz,Q2
3,bebop,,Q3
,blues,Blues,Q4
"""
EDGES = """\
parentTopicId,parrentTopicSlug,childTopicId,childTopicSlug
0,_ROOT_,0,_ROOT_
0,_ROOT_,1,music
1,music,10000000000000020305,jazz
10000000000000020305,jazz,3,bebop
1,music,3,bebop
1,music,,blues
"""


@pytest.fixture
def load(tmp_path):
    """Writes both files and loads them; None writes no edges."""

    def load(topics: str | bytes, edges: str | bytes | None = None) -> Taxonomy:
        paths = []
        for name, text in (("topics.csv", topics), ("edges.csv", edges)):
            if text is not None:
                paths.append(tmp_path / name)
                paths[-1].write_bytes(text if isinstance(text, bytes) else text.encode())
        return Taxonomy.load(*paths)

    return load


def parents(taxonomy: Taxonomy) -> dict[str, list[str]]:
    table = taxonomy.table()
    return {slug: [table[index][1] for index in above] for _, slug, _, above in table}


def test_klouts_form(load):
    taxonomy = load(TOPICS, EDGES)
    assert [row[:3] for row in taxonomy.table()] == [
        (1, "music", "Music"),
        (10000000000000020305, "jazz", "Jazz"),
        (3, "bebop", "bebop"),
        (None, "blues", "Blues"),
    ]
    assert parents(taxonomy) == {"music": [], "jazz": ["music"], "bebop": ["jazz", "music"], "blues": ["music"]}
    misspelt, loop = taxonomy.faults
    assert "parrentTopicSlug is misspelt" in misspelt
    assert "row 1: an edge from _ROOT_ to itself" in loop


def test_plain_form_and_byte_order_mark(load):
    taxonomy = load("\ufefftopicSlug\na\nb\n", "parentTopicSlug,childTopicSlug\na,b\n")
    assert taxonomy.table() == [(None, "a", "a", []), (None, "b", "b", [0])]
    assert taxonomy.faults == ()


def test_without_edges_it_is_flat(load):
    assert all(not above for above in parents(load(TOPICS)).values())


def test_a_table_is_the_callers_own(load):
    taxonomy = load(TOPICS, EDGES)
    taxonomy.table()[2][3].append(99)
    assert parents(taxonomy)["bebop"] == ["jazz", "music"]


def test_an_edge_to_no_topic_is_dropped_and_reported_once(load):
    edges = EDGES.replace("parrent", "parent") + "77,economics,1,music\n77,economics,3,bebop\n1,music,77,economics\n"
    taxonomy = load(TOPICS, edges)
    assert parents(taxonomy)["music"] == []
    assert "no topic economics (id 77): 3 edges dropped" in taxonomy.faults[-1]


def test_slugs_go_before_ids_where_the_files_disagree(load):
    header = "parentTopicId,parentTopicSlug,childTopicId,childTopicSlug\n"
    taxonomy = load(TOPICS, header + "3,music,10000000000000020305,be-bop\n")
    assert parents(taxonomy)["jazz"] == ["music"]
    by_id, by_slug = sorted(taxonomy.faults)
    assert "be-bop (id 10000000000000020305) is jazz" in by_id
    assert "matched by id" in by_id
    assert "music (id 3) has id 1" in by_slug
    assert "matched by slug" in by_slug


def test_duplicates_are_left_out_and_reported(load):
    taxonomy = load(TOPICS + "9,jazz,Again,\n1,rock,Rock,\n,,Nameless,\n", EDGES + "1,music,,blues\n")
    assert [row[1] for row in taxonomy.table()] == ["music", "jazz", "bebop", "blues", "rock"]
    assert parents(taxonomy)["blues"] == ["music"]
    faults = "\n".join(taxonomy.faults)
    assert "row 5: topic 'jazz' is there already" in faults
    assert "row 6: 'rock' has the id of 'music', 1" in faults
    assert "row 7: '' cannot be a topic's slug" in faults
    assert "1 edges are there more than once" in faults


@pytest.mark.parametrize("closing", ["bebop,music", "jazz,jazz"])
def test_a_cycle_is_printed(load, closing):
    edges = "parentTopicSlug,childTopicSlug\nmusic,jazz\njazz,bebop\nmusic,blues\n" + closing + "\n"
    with pytest.raises(InputError) as error:
        load(TOPICS, edges)
    path = str(error.value).split("cycle of topics: ")[1].split(" (")[0].split(" -> ")
    assert path[0] == path[-1]
    steps = {tuple(line.split(",")) for line in edges.splitlines()[1:]}
    assert set(itertools.pairwise(path)) <= steps
    assert "blues" not in path


@pytest.mark.parametrize(
    ("topics", "edges", "said"),
    [
        ("slug\na\n", None, ("topics.csv", "column topicSlug", "there are: slug")),
        (TOPICS, "parentTopicSlug\na\n", ("edges.csv", "column childTopicSlug")),
        ("topicSlug\n", None, ("topics.csv", "no topics")),
        ("", None, ("topics.csv", "column topicSlug")),
        (b"topicSlug\na\n\xff\xfe\n", None, ("topics.csv", "not UTF-8", "convert it")),
        (TOPICS + "-4,x,X,\n", None, ("topics.csv", "row 5", "column topicId", "'-4'")),
        (TOPICS + f"{1 << 64},x,X,\n", None, ("row 5", "below 2^64")),
        (TOPICS, EDGES + "x,music,3,bebop\n", ("edges.csv", "row 7", "column parentTopicId")),
        ('topicSlug\n"a\n', None, ("topics.csv", "not CSV")),
    ],
)
def test_files_that_cannot_be_taken(load, topics, edges, said):
    with pytest.raises(InputError) as error:
        load(topics, edges)
    for words in said:
        assert words in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv: cannot be read"):
        Taxonomy.load(tmp_path / "nowhere.csv")


def test_more_topics_than_numbers(load):
    most = "topicSlug\n" + "\n".join(map(str, range(65_534))) + "\n"
    assert len(load(most).table()) == 65_534
    with pytest.raises(InputError, match="more than 65534 topics"):
        load(most + "one-more\n")


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=16))
def test_any_graph_loads_unless_it_has_a_cycle(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("graph")
    (folder / "t.csv").write_text("topicSlug\n" + "\n".join(f"t{i}" for i in range(8)))
    (folder / "e.csv").write_text("parentTopicSlug,childTopicSlug\n" + "\n".join(f"t{a},t{b}" for a, b in steps))
    reach = {(a, b) for a, b in steps}
    while more := {(a, d) for a, b in reach for c, d in reach if b == c} - reach:
        reach |= more
    if any((i, i) in reach for i in range(8)):
        with pytest.raises(InputError, match="cycle"):
            Taxonomy.load(folder / "t.csv", folder / "e.csv")
        return
    table = Taxonomy.load(folder / "t.csv", folder / "e.csv").table()
    assert {(above, index) for index, row in enumerate(table) for above in row[3]} == set(steps)


@pytest.mark.skipif(not KLOUT.exists(), reason="Klout's topic files are not beside the project")
def test_klouts_files():
    taxonomy = Taxonomy.load(KLOUT / "topics.csv", KLOUT / "edges.csv")
    table = taxonomy.table()
    assert len(table) == 8033
    assert max(row[0] for row in table) == 10000000000000020305
    assert parents(taxonomy)["talk-show"] == ["television"]
    # Of 13,446 edges: one from the root to itself, 16 from it to topics, 21 with economics, which is no topic.
    assert sum(len(row[3]) for row in table) == 13_446 - 1 - 16 - 21
    misspelt, loop, missing = taxonomy.faults
    assert "parrentTopicSlug" in misspelt
    assert "_ROOT_" in loop
    assert "economics (id 8067190039628328240): 21 edges dropped" in missing
