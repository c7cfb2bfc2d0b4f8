"""The units of systemd: systemd-analyze finds no fault, and little that they could do beyond what they need."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from daemon.loop import STOP_SECONDS

CHECKOUT = Path(__file__).resolve().parents[2]
UNITS = sorted((CHECKOUT / "systemd").glob("*.service"))
EXPOSURE = 30  # of 100: 3.0 as it is shown
installed = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")


@pytest.fixture(params=UNITS, ids=lambda unit: unit.stem)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit as an operator has edited it: its command is there."""
    text = request.param.read_text(encoding="utf-8")
    assert "ExecStart=/opt/relearnd/relearn " in text
    edited: Path = tmp_path / request.param.name
    edited.write_text(text.replace("/opt/relearnd", str(CHECKOUT)), encoding="utf-8")
    return edited


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


def settings(unit: Path) -> dict[str, str]:
    """The section [Service]; of a key that stands there several times the last."""
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit.read_text(encoding="utf-8"))
    return dict(parser["Service"])


def test_there_are_two() -> None:
    assert [unit.stem for unit in UNITS] == ["relearn-triton", "relearnd"]


@installed
def test_a_unit_is_valid(unit: Path) -> None:
    done = analyze("verify", "--man=no", "--generators=no", "--recursive-errors=no", str(unit))
    assert (done.returncode, done.stderr.strip()) == (0, "")


@installed
def test_the_check_finds_a_fault(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KilMode=mixed").replace(str(CHECKOUT), "/nowhere"))
    done = analyze("verify", "--man=no", "--generators=no", "--recursive-errors=no", str(unit))
    assert done.returncode != 0 and "KilMode" in done.stderr


@installed
def test_a_unit_is_hardened(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", str(unit))
    assert done.returncode == 0, done.stdout
    assert float(re.findall(r"exposure level .*: (\d+\.\d)", done.stdout)[0]) <= EXPOSURE / 10


@installed
def test_with_a_gpu_it_still_is(tmp_path: Path) -> None:
    """With the lines for it in place, as the drop-in that the unit describes; no GPU is needed to look at them."""
    text = (CHECKOUT / "systemd" / "relearnd.service").read_text(encoding="utf-8")
    lines = text[text.index("#[Service]") :].partition("\n\n")[0].replace("#", "")
    assert "DeviceAllow=char-nvidia* rw" in lines
    unit = tmp_path / "relearnd.service"
    unit.write_text(f"{text.replace('/opt/relearnd', str(CHECKOUT))}\n{lines}\n", encoding="utf-8")
    done = analyze("verify", "--man=no", "--generators=no", "--recursive-errors=no", str(unit))
    assert (done.returncode, done.stderr.strip()) == (0, "")
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", str(unit))
    assert done.returncode == 0, done.stdout
    assert "PrivateDevices=" in [line.split()[1] for line in done.stdout.splitlines() if line.startswith("✗")]


def test_a_unit_does_not_come_back_after_wrong_configuration(unit: Path) -> None:
    """`relearn` ends with 2 then (tests/integration/test_daemon_commands.py), and no restart would mend it."""
    service = settings(unit)
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")


def test_the_daemon_has_the_time_that_its_stop_takes() -> None:
    service = settings(CHECKOUT / "systemd" / "relearnd.service")
    assert (service["Type"], service["WatchdogSec"], service["KillMode"]) == ("notify", "5min", "mixed")
    assert float(service["TimeoutStopSec"].removesuffix("s")) >= STOP_SECONDS + 2


def test_what_writes_code_while_it_runs_may() -> None:
    """torch and OpenVINO fail otherwise: the unit says how."""
    for file in UNITS:
        assert settings(file)["MemoryDenyWriteExecute"] == "no"
