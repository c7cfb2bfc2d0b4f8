"""The child that sends one message through Apprise: `python -m daemon.post`, the order on stdin, the answer on stdout.

A process of its own, since Apprise takes 35 MB that the daemon would keep, and since an endpoint that hangs is left by
ending it. The order comes on stdin: arguments and environment of a process can be read by others. Nothing that is said
of a failure holds any part of the URL, most of which are secret with most services.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from daemon.children import CHECKOUT, die_with_parent

if TYPE_CHECKING:
    from daemon.config import Config

SECONDS = 30.0  # that sending may take: Apprise waits at most 15 for one answer of a server's


def resolve(url: str) -> str | None:
    """The URL itself, or for "env:NAME" what that variable holds; None: it is not set."""
    scheme, _, name = url.partition(":")
    return os.environ.get(name) or None if scheme == "env" else url


def spawn() -> subprocess.Popen[str]:
    """The child, which waits for its order. Raises OSError."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-P", "-m", "daemon.post"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    )


def send(child: subprocess.Popen[str], url: str, message: Mapping[str, Any] | None) -> str | None:
    """Has the child send a message; without one, it only looks whether the URL can be used.

    Returns why it was not sent, None where it was. Of a child that is killed meanwhile one knows nothing.
    """
    if (resolved := resolve(url)) is None:
        child.kill()
        child.communicate()
        return f"the environment variable {url.partition(':')[2]} is not set"
    try:
        said, _ = child.communicate(json.dumps({"url": resolved, "message": message}), timeout=SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return f"no answer within {SECONDS:g} seconds"
    if not said:
        return f"the process that sends ended with status {child.returncode}"
    error: str | None = json.loads(said)
    return error


def find_faults(config: Config) -> list[str]:
    """A line on each entry of [[notify]] whose URL Apprise cannot use; one that is not known here may be elsewhere."""
    urls = {entry.called: entry.url.get_secret_value() for entry in config.settings.notify}
    found = {name: send(spawn(), url, None) for name, url in urls.items() if resolve(url) is not None}
    return [f"{config.file.name}: notify {name}: {error}" for name, error in found.items() if error is not None]


def main() -> None:
    die_with_parent()
    order = json.loads(sys.stdin.read())
    heard = _Ear()
    logging.getLogger("apprise").addHandler(heard)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answer alone
            error = _send(order["url"], order["message"], heard)
    except Exception as trouble:  # of whatever library a service needs
        error = f"{type(trouble).__name__}: {trouble}"
    print(json.dumps(None if error is None else mask(error, order["url"])))


class _Ear(logging.Handler):
    """Apprise says in its log alone why it could not send."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.words: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.words.append(record.getMessage())


def _send(url: str, message: Mapping[str, Any] | None, heard: _Ear) -> str | None:
    from apprise import Apprise, AppriseAsset

    asset = AppriseAsset(app_id="relearnd", app_desc="relearnd", secure_logging=True, storage_mode="memory")
    service = Apprise.instantiate(url, asset=asset)
    if service is None:
        return "Apprise knows no service of such a URL, or a part of it is missing; compare it with Apprise's own pages"
    if message is None:
        return None
    if hasattr(service, "payload_extras"):  # json://, form://, xml://: what the user's URL adds has precedence
        service.payload_extras = {**message["fields"], **service.payload_extras}
    apprise = Apprise(asset=asset)
    apprise.add(service)
    sent = apprise.notify(title=message["title"], body=message["body"], notify_type=message["type"], body_format="text")
    return None if sent else "; ".join(heard.words) or "Apprise could not send it, and does not say why"


def mask(text: str, url: str) -> str:
    """The text without any part of the URL but its scheme."""
    _, _, rest = url.partition("://")
    raw = re.split(r"[/?&=:@,+-]+", rest) + re.split(r"[/?&=@,]+", rest)
    parts = {part for piece in raw for part in (piece, unquote_plus(piece)) if len(part) > 2}
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, "…")
    return text


if __name__ == "__main__":
    main()
