"""The child that sends: real endpoints, what it says of a failure, and that no part of a URL is in it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from daemon import post
from daemon.config import load
from daemon.notices import Notice, message
from tests.endpoints import MailServer, Webhook

REASON = "worse by 3 points; 30% of «räder» & <b>\nsecond line"
MESSAGE = message(Notice(7, "verdict", "edge", "v12", "keep", REASON, "explain v12", 1.0), Path("/srv"))


def send(url: str) -> str | None:
    return post.send(post.spawn(), url, MESSAGE)


def test_a_webhook_gets_words_and_fields() -> None:
    with Webhook() as hook:
        assert send(f"{hook.url}?:line=3&:kind=mine") is None
        (taken,) = hook.taken
    assert (taken["title"], taken["type"]) == ("edge: verdict: keep", "info")
    assert taken["message"].startswith(REASON)
    fields = {key: taken[key] for key in ("id", "target", "about", "reason", "explain")}
    assert fields == {
        "id": "7", "target": "edge", "about": "v12", "reason": REASON, "explain": "relearn explain v12 --workspace /srv"
    }  # fmt: skip
    assert (taken["line"], taken["kind"]) == ("3", "mine")  # what the URL adds has precedence
    assert taken["authorization"].startswith("Basic ")


def test_a_mail_says_it_all() -> None:
    with MailServer() as server:
        assert send(server.url) is None
        (mail,) = server.mails
    assert "Subject: edge: verdict: keep" in mail
    assert "ann@example.org" in mail


def test_the_url_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK", raising=False)
    assert send("env:HOOK") == "the environment variable HOOK is not set"
    with Webhook() as hook:
        monkeypatch.setenv("HOOK", hook.url)
        assert send("env:HOOK") is None
        assert hook.about == ["v12"]


def test_a_refusal_is_said_without_a_part_of_the_url() -> None:
    with Webhook() as hook:
        hook.does = "refuse"
        error = send(hook.url)
        port = str(hook.server_port)
    assert error is not None and "500" in error
    away = send(f"json://bob:geheim99@127.0.0.1:{port}/tok3n")
    unknown = send("jsn://bob:geheim99@127.0.0.1/tok3n")
    broken = send("slack://geheim99/tok3n")
    for said in (error, away, unknown, broken):
        assert said is not None
        assert not [secret for secret in ("geheim99", "tok3n", "bob", "127.0.0.1") if secret in said], said


def test_an_endpoint_that_drips_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "SECONDS", 6.0)
    with Webhook() as hook:
        hook.does = "hang"
        before = time.monotonic()
        assert send(hook.url) == "no answer within 6 seconds"
        assert time.monotonic() - before < 60
        assert hook.asked == 1


def test_a_child_that_dies_has_not_sent() -> None:
    child = post.spawn()
    child.kill()
    child.wait()
    assert post.send(child, "json://127.0.0.1:9", MESSAGE) == "the process that sends ended with status -9"


def test_secrets_are_masked_as_they_stand_and_decoded() -> None:
    url = "mailto://ann:p%40ss%20word@example.org:25/x?key=a+b-c&y=1"
    said = post.mask("535 for ann with p@ss word, p%40ss%20word, a b-c at example.org:25", url)
    assert said == "535 for … with …, …, … at …"


def test_what_apprise_cannot_use_is_told_before_a_start(workspace: Path) -> None:
    entries = '[{url = "json://127.0.0.1"}, {url = "nosuch://geheim99"}, {url = "env:NOT_SET_HERE"}]'
    (fault,) = post.find_faults(load(workspace, [f"notify={entries}"]))
    assert fault.startswith("config.toml: notify nosuch: Apprise knows no service")
    assert "geheim99" not in fault
