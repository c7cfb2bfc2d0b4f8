"""The packaged Triton starts, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy import repository as disk
from deploy import server as packaged
from deploy.config_pbtxt import Serving
from deploy.server import Server, ServerError, find_installation, find_libpython, free_ports, name_regions
from deploy.triton import Triton
from tests.unit.deploy.models import class_names, make_artifact, names, noise

Start = Callable[..., subprocess.Popen[str]]
SECONDS = 60.0


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifact"), class_names(4))


@pytest.fixture
def root(tmp_path: Path, artifact: Path) -> Path:
    """A repository with one model, `edge`."""
    (tmp_path / "repository").mkdir()
    disk.stage(tmp_path / "repository", artifact, "edge", 1, Serving())
    disk.put(tmp_path / "repository", "edge", 1, None)
    return tmp_path / "repository"


def regions(root: Path) -> list[str]:
    """The files in shared memory of a server on this repository."""
    return sorted(path.name for path in Path("/dev/shm").glob(f"{name_regions(root)}*"))


def group(leader: int) -> list[psutil.Process]:
    """The living processes of the server's group."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def test_it_starts_with_its_models_and_leaves_nothing_behind(
    root: Path, triton_cache: Path, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with Server(root, triton_cache, load=["edge"], log=tmp_path / "log") as server:
        assert server.address == f"127.0.0.1:{server.grpc_port}"
        with Triton(server.address) as triton:
            assert triton.infer("edge", noise(1))[1] == 1
        for port, path in ((server.http_port, "/v2/models/edge/ready"), (server.metrics_port, "/metrics")):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=SECONDS) as answer:
                assert answer.status == 200
        leader = server.process.pid
        assert len(group(leader)) >= 3  # the server, and a process for each of the two instances
        assert regions(root)
    eventually(lambda: group(leader) == [])
    assert regions(root) == []
    assert server.process.returncode is not None
    for port in (server.grpc_port, server.http_port, server.metrics_port):
        socket.create_server(("127.0.0.1", port)).close()
    assert names(root) == ["edge"]


def test_backend_processes_without_a_server_are_ended(root: Path, triton_cache: Path, tmp_path: Path) -> None:
    """Of this repository alone; one that is caught while it starts does not see that its server was killed."""
    stub = tmp_path / "triton_python_backend_stub"
    stub.symlink_to("/bin/sleep")
    ours, others = (
        subprocess.Popen(["/bin/sh", "-c", f'exec -a "{prefix}1" "{stub}" 600'], executable="/bin/bash")
        for prefix in (name_regions(root), name_regions(tmp_path))
    )
    try:
        while not all(psutil.Process(p.pid).name().startswith("triton_python_b") for p in (ours, others)):
            threading.Event().wait(0.01)
        with Server(root, triton_cache, log=tmp_path / "log"):
            assert ours.wait(10) == -signal.SIGKILL
            assert others.poll() is None
    finally:
        for process in (ours, others):
            process.kill()
            process.wait()


def test_it_listens_on_this_machine_only(root: Path, triton_cache: Path, tmp_path: Path) -> None:
    with Server(root, triton_cache, log=tmp_path / "log") as server:
        listening = psutil.Process(server.process.pid).net_connections("tcp")
        found = {
            (row.laddr.ip.removeprefix("::ffff:"), row.laddr.port)
            for row in listening
            if row.status == psutil.CONN_LISTEN
        }
    assert found == {("127.0.0.1", port) for port in (server.grpc_port, server.http_port, server.metrics_port)}


def test_a_model_that_does_not_load_keeps_no_other_from_serving(
    root: Path, triton_cache: Path, tmp_path: Path, artifact: Path
) -> None:
    disk.stage(root, artifact, "broken", 1, Serving())
    disk.put(root, "broken", 1, None)
    (root / "broken" / "1" / "model.py").write_text("raise ValueError('the seventh layer')")
    with (
        Server(root, triton_cache, load=["broken", "edge"], log=tmp_path / "log") as server,
        Triton(server.address) as triton,
    ):
        assert triton.infer("edge", noise(1))[1] == 1
        assert not triton.is_ready("broken")
    assert "the seventh layer" in server.log.read_text()


def test_what_a_killed_server_left_is_cleared_by_the_next(
    root: Path, triton_cache: Path, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with Server(root, triton_cache, load=["edge"], log=tmp_path / "log") as killed:
        os.killpg(killed.process.pid, signal.SIGKILL)
        killed.process.wait(SECONDS)
        eventually(lambda: group(killed.process.pid) == [])
        left = regions(root)
        assert left
        with (
            Server(root, triton_cache, load=["edge"], log=tmp_path / "log") as server,
            Triton(server.address) as triton,
        ):
            assert triton.infer("edge", noise(1))[1] == 1
            assert not set(left) & set(regions(root))
    assert regions(root) == []


def test_shared_memory_of_others_is_left_alone(root: Path, triton_cache: Path, tmp_path: Path) -> None:
    foreign = Path("/dev/shm") / f"{name_regions(tmp_path / 'other')}of_a_test"
    foreign.write_bytes(b"theirs")
    try:
        with Server(root, triton_cache, log=tmp_path / "log"):
            pass
        assert foreign.read_bytes() == b"theirs"
    finally:
        foreign.unlink()


def test_stopping_twice_and_stopping_a_dead_one_is_no_error(root: Path, triton_cache: Path, tmp_path: Path) -> None:
    server = Server(root, triton_cache, log=tmp_path / "log")
    os.kill(server.process.pid, signal.SIGKILL)
    server.stop()
    server.stop()
    assert server.process.returncode == -signal.SIGKILL


def test_one_that_does_not_end_when_it_is_asked_is_killed(
    root: Path, triton_cache: Path, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    server = Server(root, triton_cache, load=["edge"], log=tmp_path / "log")
    os.kill(server.process.pid, signal.SIGSTOP)  # it cannot answer SIGTERM
    server.stop(seconds=0.1)
    assert server.process.returncode == -signal.SIGKILL
    eventually(lambda: group(server.process.pid) == [])
    assert regions(root) == []


def test_it_dies_with_the_process_that_started_it(
    root: Path, triton_cache: Path, tmp_path: Path, start: Start, eventually: Callable[..., None]
) -> None:
    code = (
        "import sys, threading\nfrom pathlib import Path\nfrom deploy.server import Server\n"
        "root, cache, log = map(Path, sys.argv[1:])\n"
        "server = Server(root, cache, load=['edge'], log=log)\n"
        "print(server.process.pid, flush=True)\nthreading.Event().wait()"
    )
    parent = start("-c", code, root, triton_cache, tmp_path / "log")
    assert parent.stdout is not None
    leader = int(parent.stdout.readline())
    assert len(group(leader)) >= 3
    parent.kill()
    eventually(lambda: group(leader) == [])
    packaged.clean_regions(name_regions(root))


class Misled(Server):
    """A server that is to listen where this machine has no address (203.0.113.0/24 is for documentation)."""

    def _command(self, *given: Any) -> list[str]:
        return [*super()._command(*given), "--grpc-address=203.0.113.1"]


def test_one_that_does_not_come_to_live_says_its_last_words_and_leaves_nothing(
    root: Path, triton_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ServerError, match=r"^tritonserver did not start; .*log ends: (?s:.)*203.0.113.1"):
        Misled(root, triton_cache, log=tmp_path / "log")
    running = [process for process in psutil.process_iter(["cmdline"]) if str(root) in str(process.info["cmdline"])]
    assert running == []


def test_a_repository_that_is_missing_is_said_at_once(triton_cache: Path, tmp_path: Path) -> None:
    """tritonserver itself would run without it, and serve nothing."""
    with pytest.raises(ServerError, match="missing: is no folder"):
        Server(tmp_path / "missing", triton_cache, log=tmp_path / "log")


def test_a_port_that_another_program_has_is_said(root: Path, triton_cache: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = (taken.getsockname()[1], *free_ports(2))
        with pytest.raises(ServerError, match=rf"127.0.0.1:{ports[0]} is taken \(Address already in use\)"):
            Server(root, triton_cache, ports=ports, log=tmp_path / "log")


def test_a_port_that_another_triton_has_is_said_and_that_one_keeps_its_shared_memory(
    root: Path, triton_cache: Path, tmp_path: Path
) -> None:
    with Server(root, triton_cache, load=["edge"], log=tmp_path / "first") as first:
        ports = (first.grpc_port, *free_ports(2))
        before = regions(root)
        second = None
        try:
            with pytest.raises(ServerError, match=str(first.grpc_port)):
                second = Server(root, triton_cache, ports=ports, log=tmp_path / "second")
            assert regions(root) == before
        finally:
            if second is not None:
                second.stop()


def test_an_environment_that_is_missing_names_what_to_do(tmp_path: Path, triton_cache: Path) -> None:
    with pytest.raises(ServerError, match=r"holds no Python environment; `make setup` installs") as refused:
        Server(tmp_path, triton_cache, environment=tmp_path / "none")
    assert str(refused.value).startswith(str(tmp_path / "none"))


def test_the_environment_may_be_told_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEARN_TRITON_ENV", str(tmp_path / "told"))
    with pytest.raises(ServerError, match=str(tmp_path / "told")):
        find_installation()


def environment(folder: Path, script: str) -> Path:
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return folder


def test_an_environment_whose_python_does_not_run_is_named(tmp_path: Path) -> None:
    broken = environment(tmp_path / "broken", "echo the seventh layer >&2; exit 1")
    with pytest.raises(ServerError, match=r"does not run: the seventh layer; make the environment again"):
        find_installation(broken)


def test_an_environment_without_the_wheel_names_what_to_install(tmp_path: Path) -> None:
    facts = '{"minor": "3.11", "libdir": null, "multiarch": null, "wheel": null}'
    empty = environment(tmp_path / "empty", f"echo '{facts}'")
    with pytest.raises(ServerError, match=r"lacks nvidia-pytriton; install deploy/triton_server/requirements\.lock"):
        find_installation(empty)


def test_a_python_without_a_shared_library_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"libpython3\.99\.so\.1\.0 was not found.*package libpython3\.99 \(Debian"):
        find_libpython("3.99", "/nowhere", "x86_64-linux-gnu", tmp_path)


def test_the_shared_library_is_looked_for_where_python_says_first(tmp_path: Path) -> None:
    (tmp_path / "libpython3.99.so.1.0").touch()
    assert find_libpython("3.99", str(tmp_path), None, tmp_path / "wheel") == tmp_path


def test_a_shared_library_that_the_wheel_brings_is_taken_before_all_others(tmp_path: Path) -> None:
    wheel = tmp_path / "wheel"
    wheel.mkdir()
    (tmp_path / "libpython3.99.so.1.0").touch()
    (wheel / "libpython3-1234.98.so.1.0").touch()  # of another Python
    assert find_libpython("3.99", str(tmp_path), None, wheel) == tmp_path
    (wheel / "libpython3-1234.99.so.1.0").touch()
    assert find_libpython("3.99", str(tmp_path), None, wheel) == wheel


def test_a_backend_for_another_python_names_those_that_will_do(tmp_path: Path) -> None:
    installation = packaged.Installation(tmp_path, "3.99", tmp_path, tmp_path, tmp_path)
    with pytest.raises(ServerError, match=r"has no backend for Python 3\.99: take 3\.11 to 3\.13"):
        packaged.assemble_backend(installation, tmp_path)


def test_the_backend_is_put_together_once(tmp_path: Path) -> None:
    installation = find_installation()
    backends = packaged.assemble_backend(installation, tmp_path)
    assert "triton_python_backend_stub" in names(backends / "python")
    assert "libtriton_python.so" in names(backends / "python")
    before = backends.stat().st_mtime_ns
    assert packaged.assemble_backend(installation, tmp_path) == backends
    assert (backends.stat().st_mtime_ns, names(tmp_path)) == (before, [backends.name])


def test_free_ports_are_free_and_all_different() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_what_would_lead_the_backend_to_other_packages_is_kept_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    monkeypatch.setenv("OF_THE_USER", "kept")
    places = packaged.Installation(Path("/env"), "3.11", Path("/wheel"), Path("/libs"), Path("/python"))
    found = packaged.child_environment(places)
    assert not {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} & found.keys()
    assert found["PATH"] == "/env/bin:/bin"
    assert found["LD_LIBRARY_PATH"] == "/python:/libs:/mine"
    assert found["OF_THE_USER"] == "kept"
