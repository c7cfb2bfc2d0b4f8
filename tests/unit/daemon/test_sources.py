"""Where events come from: real files under a real watch, timers of a real scheduler, a clock that the test moves."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from watchdog.events import FileSystemEvent
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

from daemon import settling as module
from daemon import sources
from daemon.config import Config, load
from daemon.events import (
    FEW,
    ConstraintsTouched,
    DropSettled,
    Event,
    ImagesComing,
    PersonAsked,
    SourceFailed,
    TimerFired,
)
from daemon.settling import Settling, Touch
from daemon.sources import MANY, OVERDUE_SECONDS, Sources, running

CHECKOUT = Path(__file__).resolve().parents[3]
SECONDS = 30.0
Png = Callable[..., Path]


class Heard:
    """The queue of running sources."""

    def __init__(self, config: Config) -> None:
        self.queue: SimpleQueue[Event] = SimpleQueue()
        self.sources = Sources(config, self.queue)
        self.events: list[Event] = []

    def until(self, wanted: Callable[[Event], bool], seconds: float = SECONDS) -> Event:
        """The next event of this kind; fails at the deadline."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                event = self.queue.get(timeout=max(deadline - time.monotonic(), 0.001))
            except Empty:
                pytest.fail(f"it was not heard; heard were {self.events}")
            self.events.append(event)
            if wanted(event):
                return event

    def path(self, file: Path, seconds: float = SECONDS) -> Event:
        """A drop that says to look at this file, or at a folder that holds it, or everywhere."""
        return self.until(lambda event: isinstance(event, DropSettled) and leads_to(event, file), seconds)


def leads_to(event: DropSettled, file: Path) -> bool:
    return event.paths is None or any(file.is_relative_to(path) for path in event.paths)


@pytest.fixture
def listen(config: Config) -> Iterator[Callable[..., Heard]]:
    with ExitStack() as stack:

        def start(*overrides: str) -> Heard:
            heard = Heard(load(config.workspace, ["watch.settle_seconds=0.05", *overrides]) if overrides else config)
            stack.enter_context(running(heard.sources))
            return heard

        yield start


@pytest.fixture
def images(config: Config) -> Path:
    return config.folders[0]


# --- settling -------------------------------------------------------------------------------------------------------


class Clock:
    """A monotonic clock that stands still until it is moved; how often it was read tells that somebody waits."""

    def __init__(self) -> None:
        self.now, self.reads = 100.0, 0

    def monotonic(self) -> float:
        self.reads += 1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_a_burst_is_told_once_nothing_has_changed_for_the_settle_time(
    clock: Clock, eventually: Callable[..., None]
) -> None:
    told: list[frozenset[Path]] = []
    settling = Settling(0.02, told.append)
    settling.start()

    def look_again() -> None:
        before = clock.reads
        eventually(lambda: clock.reads >= before + 3)

    try:
        settling.touch(Path("a"))
        look_again()
        assert told == []
        clock.now += 0.015
        settling.touch(Path("b"), Path("a"))
        clock.now += 0.015  # 0.03 after the first change, 0.015 after the last
        look_again()
        assert told == []
        clock.now += 0.006
        eventually(lambda: told)
        assert told == [frozenset({Path("a"), Path("b")})]
        settling.touch(Path("c"))
        clock.now += 1
        eventually(lambda: len(told) == 2)
        assert told[1] == {Path("c")}
    finally:
        settling.stop()


def test_of_a_stream_that_never_pauses_the_quiet_part_is_told(clock: Clock, eventually: Callable[..., None]) -> None:
    told: list[frozenset[Path]] = []
    settling = Settling(2, told.append, longest=10)
    settling.start()
    try:
        for second in range(10):
            settling.touch(Path("written all the while"), Path(str(second)))
            clock.now += 1
        eventually(lambda: told)
        assert told == [frozenset(Path(str(second)) for second in range(9))]
        clock.now += 1  # and two since the last change
        eventually(lambda: len(told) == 2)
        assert told[1] == {Path("written all the while"), Path("9")}
    finally:
        settling.stop()


def test_what_was_told_is_not_remembered(eventually: Callable[..., None]) -> None:
    told: list[weakref.ref[frozenset[Path]]] = []
    settling = Settling(0.01, lambda paths: told.append(weakref.ref(paths)))
    settling.start()
    try:
        settling.touch(Path("a"), Path("b"))
        eventually(lambda: told)
        eventually(lambda: told[0]() is None)
    finally:
        settling.stop()


def test_what_begins_to_come_is_announced_and_again_when_it_is_much() -> None:
    announced: list[bool] = []
    settling = Settling(1000, lambda _: None, announce=announced.append)
    settling.touch(Path("changed"))
    assert announced == []
    for number in range(3 * FEW):
        settling.touch(Path(str(number)), coming=1)
        assert announced == [False, True][: 1 + (number >= FEW)]
    settling.complete(Path())
    settling.touch(Path("folder"), coming=FEW + 1)
    assert announced == [False, True, True]


def test_what_has_not_settled_is_not_told_at_the_end() -> None:
    told: list[frozenset[Path]] = []
    settling = Settling(1000, told.append)
    settling.start()
    settling.touch(Path("a"))
    settling.stop()
    assert told == []


# --- watched folders ------------------------------------------------------------------------------------------------


def test_a_file_is_noticed_wherever_it_comes(listen: Callable[..., Heard], images: Path, png: Png) -> None:
    heard = listen()
    for name in ("cat/1.png", "cat/2.png", "dog/deep/er/3.png"):
        heard.path(png(images / name))


@pytest.mark.parametrize("change", ["rename", "rename folder", "delete", "rewrite", "out"])
def test_every_kind_of_change_is_noticed(
    listen: Callable[..., Heard], images: Path, png: Png, tmp_path: Path, change: str
) -> None:
    file = png(images / "cat" / "1.png")
    heard = listen()
    match change:
        case "rename":
            file.rename(images / "cat" / "2.png")
        case "rename folder":
            file.parent.rename(images / "dog")
        case "delete":
            file.unlink()
        case "rewrite":
            file.write_bytes(b"other")
        case "out":
            file.rename(tmp_path / "1.png")
    heard.path(file)


def test_a_move_leads_to_both_places(listen: Callable[..., Heard], images: Path, png: Png) -> None:
    file = png(images / "cat" / "1.png")
    (images / "dog").mkdir()
    heard = listen()
    file.rename(images / "dog" / "1.png")
    event = heard.path(file)
    assert isinstance(event, DropSettled)
    assert leads_to(event, images / "dog" / "1.png")


def test_reading_is_no_change(listen: Callable[..., Heard], images: Path, png: Png) -> None:
    read, other = png(images / "cat" / "1.png"), images / "dog" / "2.png"
    (images / "dog").mkdir()
    heard = listen()
    read.read_bytes()
    other.write_bytes(b"written")
    event = heard.path(other)
    assert isinstance(event, DropSettled)
    assert not leads_to(event, read)


def test_a_folder_that_is_moved_in_is_told_of_as_one(
    listen: Callable[..., Heard], images: Path, png: Png, tmp_path: Path
) -> None:
    """Not with each of its files: of 50,000 that alone took a second."""
    for name in ("1.png", "deep/2.png"):
        png(tmp_path / "coming" / name)
    heard = listen()
    (tmp_path / "coming").rename(images / "cat")
    assert heard.path(images / "cat" / "deep" / "2.png") == DropSettled(images, frozenset({images / "cat"}))


def test_a_change_of_the_folder_itself_means_to_look_at_all_of_it(listen: Callable[..., Heard], images: Path) -> None:
    heard = listen()
    images.chmod(0o700)
    assert heard.until(lambda event: isinstance(event, DropSettled)) == DropSettled(images, None)


def test_what_comes_into_a_folder_is_told_of_alone(listen: Callable[..., Heard], images: Path, png: Png) -> None:
    """Not with all that the folder holds: a drop of one must not cost a look at a million."""
    (images / "cat").mkdir()
    heard = listen()
    event = heard.path(png(images / "cat" / "1.png"))
    assert isinstance(event, DropSettled) and event.paths is not None
    assert images / "cat" not in event.paths


@pytest.mark.parametrize("polling", ["false", "true"])
def test_a_done_marker_settles_its_folder_at_once(
    listen: Callable[..., Heard], images: Path, png: Png, polling: str
) -> None:
    complete = DropSettled(images, frozenset({images / "monday"}))
    heard = listen(
        "watch.settle_seconds=3600", 'watch.done_marker="_READY"', f"watch.polling={polling}",
        "watch.polling_seconds=0.05",
    )  # fmt: skip
    png(images / "monday" / "1.png")
    png(images / "tuesday" / "2.png")
    (images / "monday" / "_READY").touch()
    assert heard.until(lambda event: isinstance(event, DropSettled)) == complete
    while not heard.queue.empty():
        event = heard.queue.get()
        assert event == complete or isinstance(event, ImagesComing)  # Tuesday is not


@pytest.mark.parametrize("polling", ["false", "true"])
def test_a_done_marker_is_heard_of_in_a_folder_that_is_moved_in(
    listen: Callable[..., Heard], images: Path, png: Png, tmp_path: Path, polling: str
) -> None:
    png(tmp_path / "monday" / "1.png")
    (tmp_path / "monday" / "_READY").touch()
    heard = listen(
        "watch.settle_seconds=3600", 'watch.done_marker="_READY"', f"watch.polling={polling}",
        "watch.polling_seconds=0.05",
    )  # fmt: skip
    (tmp_path / "monday").rename(images / "monday")
    event = heard.until(lambda event: isinstance(event, DropSettled))
    assert event == DropSettled(images, frozenset({images / "monday"}))


def test_only_what_may_be_images_is_announced(
    listen: Callable[..., Heard], images: Path, png: Png, tmp_path: Path
) -> None:
    heard = listen()
    (images / ".hidden").write_text("text")
    (images / "cat").mkdir()
    (images / "cat" / ".swap").mkdir()
    heard.until(lambda event: isinstance(event, DropSettled))
    assert not any(isinstance(event, ImagesComing) for event in heard.events)
    png(images / "cat" / "1.png")
    assert heard.until(lambda event: isinstance(event, ImagesComing)) == ImagesComing(many=False)
    heard.path(images / "cat" / "1.png")
    png(tmp_path / "dog" / "1.png")
    (tmp_path / "dog").rename(images / "dog")
    assert heard.until(lambda event: isinstance(event, ImagesComing)) == ImagesComing(many=True)


def test_of_a_folder_that_is_moved_in_the_files_are_not_told_one_by_one(
    listen: Callable[..., Heard], images: Path, png: Png, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 50,000 it takes half a second of Python to tell, and to hear, what the scan finds anyway."""
    told: list[FileSystemEvent] = []
    monkeypatch.setattr(Touch, "dispatch", lambda touch, event: (told.append(event), touch.on_any_event(event)))
    for number in range(20):
        png(tmp_path / "cat" / "deep" / f"{number}.png", number)
    heard = listen()
    (tmp_path / "cat").rename(images / "cat")
    assert heard.path(images / "cat" / "deep" / "1.png") == DropSettled(images, frozenset({images / "cat"}))
    assert not any(event.is_synthetic for event in told)
    later = png(images / "cat" / "deep" / "later.png")  # it is watched all the same
    event = heard.path(later)
    assert isinstance(event, DropSettled)
    assert event.paths is not None
    assert later in event.paths


def test_a_file_that_is_being_written_waits_until_it_is_closed(listen: Callable[..., Heard], images: Path) -> None:
    """However long its writer pauses; all that came beside it waits with it: it is one drop."""
    (images / "cat").mkdir()
    heard = listen()
    slow, quick = images / "cat" / "slow.png", images / "cat" / "quick.png"
    with slow.open("wb") as file:
        file.write(b"half")
        file.flush()
        quick.write_bytes(b"whole")
        with pytest.raises(pytest.fail.Exception):
            heard.until(lambda event: isinstance(event, DropSettled), 1.0)
        assert heard.sources.writing(images) == {slow}
    assert heard.path(slow) == DropSettled(images, frozenset({slow, quick}))


NAMESPACE = """
echo 6 > /proc/sys/user/max_inotify_watches
exec "$0" -P -c "$1" "$2"
"""
COUNTER = """
import sys
from pathlib import Path
from queue import SimpleQueue
from daemon.config import load
from daemon.events import DropSettled, SourceFailed
from daemon.sources import Sources, running

config = load(Path(sys.argv[1]), ["watch.settle_seconds=0.05", "watch.polling_seconds=0.05"])
queue = SimpleQueue()
with running(Sources(config, queue)):
    for number in range(8):
        (config.folders[0] / f"class{number}").mkdir()
    while not isinstance(event := queue.get(timeout=30), SourceFailed):
        pass
    print(event.what, flush=True)
    (config.folders[0] / "class7" / "1.png").touch()
    while not isinstance(event := queue.get(timeout=30), DropSettled) or (
        event.paths and "class7/1.png" not in str(event.paths)
    ):
        pass
    print("noticed", flush=True)
"""


def test_the_limit_of_watches_is_said_and_the_folder_polled(config: Config) -> None:
    """A real limit, in a user namespace of its own: folders that come later get no watch."""
    if subprocess.run(["unshare", "-Ur", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives no user namespaces")
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", NAMESPACE, sys.executable, COUNTER, str(config.workspace)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said, noticed = done.stdout.splitlines()
    assert "the limit of inotify watches is reached; it is polled meanwhile" in said
    assert "sudo sysctl fs.inotify.max_user_watches=" in said
    assert noticed == "noticed"


@pytest.mark.parametrize(("number", "all_of_it"), [(MANY, False), (MANY + 1, True)])
def test_so_many_paths_are_no_hint_any_more(
    listen: Callable[..., Heard], images: Path, number: int, all_of_it: bool
) -> None:
    heard = listen()
    heard.sources.touch(images, *(images / "cat" / str(index) for index in range(number)))
    event = heard.until(lambda event: isinstance(event, DropSettled))
    assert isinstance(event, DropSettled)
    assert (event.paths is None) is all_of_it


def test_several_folders_are_told_apart(config: Config, images: Path, listen: Callable[..., Heard], png: Png) -> None:
    second = images.with_name("more")
    second.mkdir()
    heard = listen('watch.folders=["images", "more"]')
    png(second / "cat" / "1.png")
    event = heard.until(lambda event: isinstance(event, DropSettled))
    assert isinstance(event, DropSettled)
    assert event.folder == second
    heard.sources.touch(images, images / "cat" / "2.png")
    assert DropSettled(images, frozenset({images / "cat" / "2.png"})) == heard.path(images / "cat" / "2.png")


def test_the_folders_of_another_configuration_are_watched_in_their_place(
    config: Config, images: Path, listen: Callable[..., Heard], png: Png, eventually: Callable[..., None]
) -> None:
    heard = listen('watch.folders=["images"]')
    old = set(heard.sources._observers)
    more, rules = images.with_name("more"), images.with_name("rules")
    more.mkdir()
    rules.mkdir()
    settings = ["watch.settle_seconds=0.05", 'watch.folders=["more"]', "paths.constraints=rules"]
    heard.sources.reconfigure(load(config.workspace, [*settings, "watch.rescan_minutes=7"]))
    png(images / "cat" / "1.png")
    (rules / "edge.toml").touch()
    heard.until(lambda event: event == ConstraintsTouched())
    heard.path(png(more / "cat" / "2.png"))
    assert not [event for event in heard.events if isinstance(event, DropSettled) and event.folder == images]
    eventually(lambda: sum(observer.is_alive() for observer in old) == 1)  # that of the inbox
    timers = [job for job in heard.sources.scheduler.get_jobs() if job.args]
    seconds = {job.args[0]: job.trigger.interval.total_seconds() for job in timers}
    assert seconds == {"rescan": 420, "overdue": OVERDUE_SECONDS}


def test_what_is_watched_as_before_is_not_watched_anew(config: Config, listen: Callable[..., Heard]) -> None:
    heard = listen()
    before = set(heard.sources._observers)
    heard.sources.reconfigure(load(config.workspace, ["watch.settle_seconds=0.01", "train.epochs=3"]))
    assert heard.sources._observers == before


def test_a_polled_folder_is_noticed_too(listen: Callable[..., Heard], images: Path, png: Png) -> None:
    heard = listen("watch.polling=true", "watch.polling_seconds=0.05")
    heard.path(png(images / "cat" / "1.png"))


def test_a_folder_that_cannot_be_watched_is_polled(
    listen: Callable[..., Heard], images: Path, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the limit of inotify watches is reached."""

    class Refused:
        def schedule(self, *_arguments: object, **_named: object) -> None:
            raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(sources, "_observer", lambda _: Refused())
    heard = listen("watch.polling_seconds=0.05")
    failed = heard.until(lambda event: isinstance(event, SourceFailed))
    assert isinstance(failed, SourceFailed)
    assert f"{images}: the limit of inotify watches is reached; it is polled meanwhile" in failed.what
    heard.path(png(images / "cat" / "1.png"))


def test_a_folder_that_is_polled_for_want_of_watches_hears_of_the_same_changes(
    listen: Callable[..., Heard], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    class Polling(PollingObserver):
        def schedule(self, *arguments: Any, **named: Any) -> Any:
            asked.append(named.get("event_filter"))
            return super().schedule(*arguments, **named)

    class Refused:
        def schedule(self, *_arguments: object, **_named: object) -> None:
            raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(sources, "PollingObserver", Polling)
    listen("watch.polling=true")
    wanted = asked[0]
    monkeypatch.setattr(sources, "_observer", lambda _: Refused())
    listen()
    assert wanted and all(filter_ == wanted for filter_ in asked)


def test_of_a_folder_that_is_replaced_again_and_again_one_observer_is_kept(
    listen: Callable[..., Heard], images: Path
) -> None:
    heard = listen()
    before = len(heard.sources._observers)
    for number in range(3):
        images.rename(images.with_name(f"away{number}"))
        images.mkdir()
        heard.until(lambda event: isinstance(event, SourceFailed))
        heard.until(lambda event: isinstance(event, DropSettled))
    assert len(heard.sources._observers) == before


GONE = "the watch ends with the folder: what comes into the new one is not noticed"


@pytest.mark.parametrize("how", ["removed", "moved away"])
def test_a_folder_that_comes_back_is_watched_again(
    listen: Callable[..., Heard], images: Path, png: Png, how: str
) -> None:
    png(images / "cat" / "1.png")
    heard = listen()
    shutil.rmtree(images) if how == "removed" else images.rename(images.with_name("away"))
    heard.until(lambda event: isinstance(event, DropSettled | SourceFailed), 3) if how == "removed" else None
    heard.path(png(images / "cat" / "2.png"), seconds=1.5)


def test_constraints_are_noticed_after_their_folder_was_replaced(listen: Callable[..., Heard], config: Config) -> None:
    heard = listen()
    text = (config.constraints / "edge.toml").read_text()
    shutil.rmtree(config.constraints)
    heard.until(lambda event: isinstance(event, ConstraintsTouched))
    config.constraints.mkdir()
    for number in range(3):
        (config.constraints / "edge.toml").write_text(f"{text}# {number}\n")
    heard.until(lambda event: isinstance(event, ConstraintsTouched), seconds=1.5)


def test_an_overflow_of_notification_means_to_look_everywhere(config: Config, images: Path, png: Png) -> None:
    """The daemon is held up while more changes in one folder than the kernel keeps, and then one in another."""
    (images / "busy").mkdir()
    (images / "quiet").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", LISTENER, str(config.workspace)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGSTOP)
        one, other = png(images / "busy" / "1.png"), images / "busy" / "2.png"
        for _ in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())):
            one, other = one.rename(other), one
        png(images / "quiet" / "1.png")
        child.send_signal(signal.SIGCONT)
        said = child.stdout.readline()
        while "quiet" not in said and "None" not in said:
            said = child.stdout.readline()
            assert said != "over\n"
    finally:
        child.kill()
        child.wait()


LISTENER = """
import sys
from pathlib import Path
from queue import Empty, SimpleQueue
from daemon.config import load
from daemon.sources import Sources, running
queue = SimpleQueue()
with running(Sources(load(Path(sys.argv[1]), ["watch.settle_seconds=0.05"]), queue)):
    print("ready", flush=True)
    try:
        while True:
            print(queue.get(timeout=1.5), flush=True)
    except Empty:
        print("over", flush=True)
"""


# --- constraints, people, timers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["write", "replace", "remove", "new"])
def test_an_edit_of_constraints_is_noticed(
    listen: Callable[..., Heard], config: Config, tmp_path: Path, how: str
) -> None:
    file = config.constraints / "edge.toml"
    heard = listen()
    match how:
        case "write":
            file.write_text("version = 2")
        case "replace":
            (tmp_path / "edge.toml").write_text("version = 2")
            (tmp_path / "edge.toml").rename(file)
        case "remove":
            file.unlink()
        case "new":
            file.with_name("phone.toml").write_text("version = 2")
    assert heard.until(lambda event: isinstance(event, ConstraintsTouched)) == ConstraintsTouched()


def test_what_people_ask_wakes_the_loop(listen: Callable[..., Heard], config: Config) -> None:
    heard = listen("watch.polling=true")  # the inbox is local, whatever the watched folders are
    (config.state / "inbox" / "wake").write_text("1\n")
    assert heard.until(lambda event: isinstance(event, PersonAsked)) == PersonAsked()


def test_scans_come_round_by_themselves(listen: Callable[..., Heard]) -> None:
    heard = listen("watch.rescan_minutes=0.0005")
    for _ in range(2):
        heard.until(lambda event: event == TimerFired("rescan"))


def test_the_scan_is_as_often_as_configured(listen: Callable[..., Heard]) -> None:
    heard = listen("watch.rescan_minutes=7")
    timers = [job for job in heard.sources.scheduler.get_jobs() if job.args]
    seconds = {job.args[0]: job.trigger.interval.total_seconds() for job in timers}
    assert seconds == {"rescan": 420, "overdue": OVERDUE_SECONDS}


def test_a_timer_fires_at_its_moment(listen: Callable[..., Heard], eventually: Callable[..., None]) -> None:
    heard = listen()
    moment = time.time() + 0.05
    heard.sources.fire_at(moment, "look again")
    heard.until(lambda event: event == TimerFired("look again"))
    assert time.time() >= moment - 0.001
    eventually(lambda: heard.sources.scheduler.get_job("look again") is None)


def test_a_moment_that_has_passed_fires_at_once(listen: Callable[..., Heard], eventually: Callable[..., None]) -> None:
    heard = listen()
    heard.sources.fire_at(time.time() - 86_400, "retry")
    heard.until(lambda event: event == TimerFired("retry"))
    eventually(lambda: heard.sources.scheduler.get_job("retry") is None)  # and once


def test_a_timer_of_the_same_name_takes_the_place_of_the_earlier(
    listen: Callable[..., Heard], eventually: Callable[..., None]
) -> None:
    heard = listen()
    heard.sources.fire_at(time.time() + 1000, "retry")
    heard.sources.fire_at(time.time() + 2000, "timeout")
    heard.sources.fire_at(time.time(), "retry")
    heard.until(lambda event: event == TimerFired("retry"))
    eventually(lambda: heard.sources.scheduler.get_job("retry") is None)
    assert heard.sources.scheduler.get_job("timeout") is not None


def test_at_the_end_nothing_is_left_running(config: Config, eventually: Callable[..., None]) -> None:
    quick = dataclasses.replace(config)
    heard = Heard(quick)
    with pytest.raises(ZeroDivisionError), running(heard.sources):
        observers: set[BaseObserver] = heard.sources._observers
        assert all(observer.is_alive() for observer in observers)
        raise ZeroDivisionError
    assert not heard.sources.scheduler.running
    eventually(lambda: not any(observer.is_alive() for observer in observers))
    assert not any(thread.name == "settling" for thread in threading.enumerate())
