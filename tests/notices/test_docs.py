"""The page for partners shows what is really sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from notices.support import V1, V2, act, announce

from kserve.notices.deliveries import DELAYS, send_test
from kserve.notices.desk import Desk
from kserve.notices.events import TEST, TYPES
from kserve.notices.store import Store
from kserve.notices.webhooks import add_endpoint

PAGE = (Path(__file__).parents[2] / "docs" / "notices.md").read_text()


@pytest.fixture
def sent(desk: Desk, store: Store, data: Path) -> dict[str, dict[str, Any]]:
    """One event of each type."""
    announce(data, V1)
    announce(data, V2, V1)
    act(data, "breach", V2, figures={"lowest": {"after": 0.6123, "threshold": 0.02, "before": 0.01}})
    act(data, "rollback", V1, by_sentinel=True, **{"from": V2})
    act(data, "good", V1)
    desk.catch_up()
    send_test(store, add_endpoint(store, "https://8.8.8.8/")[0].id)
    return {row["type"]: json.loads(row["body"]) for row in store.rows("SELECT type, body FROM events")}


def shape(value: Any) -> Any:
    return {name: shape(part) for name, part in value.items()} if isinstance(value, dict) else None


def test_every_event_has_a_heading(sent: dict[str, dict[str, Any]]) -> None:
    assert set(sent) == {*TYPES, TEST}
    assert all(f"#### {type}\n" in PAGE for type in sent)


def test_examples_are_of_the_shape_that_is_sent(sent: dict[str, dict[str, Any]]) -> None:
    examples = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    assert {example["type"] for example in examples} == {*TYPES[:3]}
    for example in examples:
        assert shape(example) == shape(sent[example["type"]])
        assert example["timestamp"].endswith("Z")
    assert shape(sent["incident.updated"]["data"]) == shape(sent["incident.opened"]["data"])
    assert sent["incident.resolved"]["data"]["resolved_at"]


def test_the_delays_are_those_that_are_waited() -> None:
    words = [
        f"{seconds // 3600} h" if seconds >= 3600 else f"{seconds // 60} min" if seconds >= 60 else f"{seconds} s"
        for seconds in (int(delay.total_seconds()) for delay in DELAYS)
    ]
    assert ", ".join(words[:-1]) + " and " + words[-1] in PAGE
