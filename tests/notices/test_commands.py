"""The commands ``kserve incident`` and ``kserve webhooks``, as people and scripts use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from cli.support import done, run
from notices.support import V1, V2, Partner, act, announce
from standardwebhooks import Webhook
from waiting import until

from kserve.cli.incidents import incident_app
from kserve.cli.webhooks import webhooks_app
from kserve.notices.deliverer import NoticesThread
from kserve.settings import Settings

GROUPS: list[Any] = [typer.main.get_command(incident_app), typer.main.get_command(webhooks_app)]
COMMANDS: dict[str, Any] = {
    f"{name} {n}": c for g, name in zip(GROUPS, ("incident", "webhooks"), strict=True) for n, c in g.commands.items()
}


@pytest.fixture(autouse=True)
def here(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSERVE_DATA", str(data))
    monkeypatch.setenv("KSERVE_WEBHOOK_PRIVATE", "1")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_when_and_how(name: str) -> None:
    what, when, example, line = COMMANDS[name].help.split("\n\n")
    assert what.endswith(".")
    assert len(when) > 80
    assert example == "Example:"
    assert line.strip().startswith(f"$ kserve {name}")
    assert all(parameter.help for parameter in COMMANDS[name].params)
    assert {"--json", "--data"} <= {option for parameter in COMMANDS[name].params for option in parameter.opts}


def test_an_incident_from_its_beginning_to_its_end() -> None:
    assert "no incidents" in done("incident", "list").out
    text = ("--text", "The pipeline is late.\nWe look.")
    found = done("incident", "open", "Scores are late", "--component", "publishing", *text, "--json").json()
    assert (found["status"], found["impact"], found["visibility"]) == ("investigating", "minor", "public")
    assert "Scores are late" in done("incident", "list").out
    done("incident", "update", found["id"], "--status", "identified", "--impact", "major", "--text", "A disk.")
    shown = done("incident", "resolve", found["id"], "--text", "It goes on.", "--by", "ann").out
    assert "resolved, major, by ann" in shown
    assert "  We look." in shown
    (only,) = done("incident", "list", "--json").json()["incidents"]
    assert [update["status"] for update in only["updates"]] == ["investigating", "identified", "resolved"]
    assert done("incident", "show", found["id"], "--json").json() == only


def test_an_incident_needs_what_the_docs_say() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "cli.md").read_text().splitlines()
    (synopsis,) = (line.split() for line in lines if line.startswith("    kserve incident open "))
    words = {"TITLE": "Scores are late", "TEXT": "We look into it.", "NAME": "publishing"}
    assert done(*(words.get(word, word) for word in synopsis[1:-1]), "--json").json()["components"] == ["publishing"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("incident", "show", "inc_x"), 4, "there is no incident inc_x"),
        (("incident", "open", "T", "--text", "t"), 5, "affects something"),
        (("incident", "open", "T", "--text", "t", "--component", "moon"), 5, "no component"),
        (("incident", "open", "T", "--component", "scores"), 2, "--text"),
        (("webhooks", "test", "wh_x"), 4, "there is no endpoint wh_x"),
        (("webhooks", "add", "ftp://127.0.0.1/"), 5, "https and http only"),
        (("webhooks", "add", "http://127.0.0.1/", "--event", "moon.rose"), 5, "no type of event"),
        (("webhooks", "retry"), 2, "--endpoint"),
        (("webhooks", "retry", "msg_x"), 4, "there is no delivery msg_x"),
        (("webhooks", "list", "--data", "nowhere"), 9, "--data"),
    ],
)
def test_errors(words: tuple[str, ...], code: int, message: str) -> None:
    result = run(*words)
    assert result.code == code
    assert message in result.err
    assert "Traceback" not in result.err


def test_private_addresses_are_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KSERVE_WEBHOOK_PRIVATE")
    refused = run("webhooks", "add", "https://127.0.0.1/", "--json")
    assert refused.code == 5
    assert "loopback" in refused.error()["message"]
    done("webhooks", "add", "http://127.0.0.1/", "--webhook-private")


def test_acts_are_told_of_by_whichever_command_comes_next(data: Path) -> None:
    announce(data, V1)
    act(data, "check", V2, held=["mass"])
    (found,) = done("incident", "list", "--json").json()["incidents"]
    assert found["automatic"]
    assert found["versions"] == [V2]


def test_what_a_partner_has_put_into_the_query_is_not_shown(data: Path) -> None:
    done("webhooks", "add", "http://127.0.0.1/hook?token=s3cret&s4cret&site=1", "--webhook-private")
    shown = "http://127.0.0.1/hook?token=...&...&site=..."
    assert shown in done("webhooks", "list").out
    assert [one["url"] for one in done("webhooks", "list", "--json").json()["endpoints"]] == [shown]


def test_a_partner_from_its_beginning_to_its_end(data: Path, partner: Callable[..., Partner]) -> None:
    assert "no endpoints" in done("webhooks", "list").out
    assert "no messages" in done("webhooks", "deliveries").out
    one = partner(answers=[(200, {}, b""), (500, {}, b""), (200, {}, b"")])
    added = done("webhooks", "add", one.url, "--event", "snapshot.announced", "--json").json()
    id, secret = added["endpoint"]["id"], added["secret"]
    assert secret not in done("webhooks", "list").out + done("webhooks", "list", "--json").out
    assert "delivered, 200 in" in done("webhooks", "test", id).out
    assert Webhook(secret).verify(one.requests[0].body, one.requests[0].headers)["type"] == "webhook.test"
    announce(data, V1)
    assert done("webhooks", "deliver", "--once").out == "1 pending\n"
    failed = done("webhooks", "deliveries", "--failed", "--json").json()["deliveries"]
    assert [found["last"]["error"] for found in failed] == ["answered 500"]
    assert "answered 500" in done("webhooks", "deliveries", "--endpoint", id).out
    assert done("webhooks", "retry", failed[0]["event"]).out == "1 messages are due\n"
    assert done("webhooks", "deliver", "--once", "--json").json() == {"attempts": {"delivered": 1}}
    assert one.requests[1].id == one.requests[2].id
    rotated = done("webhooks", "rotate", id, "--overlap", "0", "--json").json()["secret"]
    done("webhooks", "test", id)
    assert Webhook(rotated).verify(one.requests[3].body, one.requests[3].headers)
    done("webhooks", "disable", id, "--reason", "a pause")
    assert "disabled: a pause" in done("webhooks", "list").out
    assert run("webhooks", "test", id).code == 5
    done("webhooks", "enable", id)
    done("webhooks", "remove", id)
    assert "no endpoints" in done("webhooks", "list").out
    assert done("webhooks", "deliver", "--once").out == "nothing was due\n"


def test_a_test_that_fails_says_so(partner: Callable[..., Partner]) -> None:
    one = partner(answers=[(404, {}, b"no such hook")])
    id = done("webhooks", "add", one.url, "--json").json()["endpoint"]["id"]
    result = run("webhooks", "test", id)
    assert result.code == 1
    assert "answered 404" in result.out


def test_while_a_server_delivers(settings: Settings, partner: Callable[..., Partner]) -> None:
    one = partner()
    id = done("webhooks", "add", one.url, "--json").json()["endpoint"]["id"]
    thread = NoticesThread(settings)
    thread.start()
    try:
        until(lambda: (settings.data / "NOTICES").exists())
        until(lambda: run("webhooks", "deliver", "--once").code == 10)
        assert "delivered" in done("webhooks", "test", id).out
    finally:
        thread.stop()
    assert json.loads(one.requests[0].body)["data"] == {"endpoint": id}
