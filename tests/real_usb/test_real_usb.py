"""Boots the USB machine and runs the programs of ``guest`` in it.

The machine is a tool beside this repository, or where DAQ_IOC_USBVM says. It is used as User-Mode
Linux 6.1, which needs root but no KVM and takes about 4 minutes to build when it is first used, and
with virtual time: the clock stands still while anything computes. So a slow or busy computer
changes no result, and 10 s of streaming are 10 s however long they take.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TOOL = Path(os.environ.get("DAQ_IOC_USBVM") or REPOSITORY.parent / "shared" / "tools" / "usbvm")
MACHINE = (sys.executable, str(TOOL / "run_vm.py"), "--machine", "uml")
UNTESTED = "libusb before a real kernel is not tested"
BUILD_SECONDS = 900
RUN_SECONDS = 240

pytestmark = [
    pytest.mark.skipif(
        not (TOOL / "run_vm.py").is_file(),
        reason=f"{UNTESTED}: no run_vm.py in {TOOL}; set DAQ_IOC_USBVM to its folder",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason=f"{UNTESTED}: that needs root"),
    pytest.mark.timeout(BUILD_SECONDS + RUN_SECONDS + 60),
]


def run(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Exit status and output of ``command``, which is over when this returns or raises."""
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException:
            # Not SIGKILL: the machine is in a session of its own, and ended by what gets SIGTERM.
            os.killpg(process.pid, signal.SIGTERM)
            raise
    return process.returncode, output


@pytest.fixture(scope="session")
def machine() -> tuple[str, ...]:
    """The command that runs another one in the machine, which is built if need be."""
    status, output = run(MACHINE, BUILD_SECONDS)
    assert status == 0, output
    return (*MACHINE, "--time-travel", "inf-cpu", "--timeout", str(RUN_SECONDS - 30))


@pytest.mark.parametrize("program", ["check_requests.py", "check_stream.py", "check_device.py"])
def test_in_the_machine(machine: Sequence[str], program: str) -> None:
    instrument = f"{HERE / 'usb_device.py'}:Instrument"
    devices = ["--device", f"{instrument}(calibration='long')"]
    if program == "check_stream.py":
        devices += ["--device", f"{instrument}(serial='000416')"]
    # Without the plugins and conftest of other tests: in the machine it takes long to load them.
    pytest_command = f"{sys.executable} -m pytest -p no:cacheprovider -p no:hypothesispytest"
    options = f"--confcutdir={HERE / 'guest'} --timeout=100 --color=no --tb=short -q -rP"
    file = str(HERE / "guest" / program)
    status, output = run(
        (*machine, *devices, "--", *pytest_command.split(), *options.split(), file), RUN_SECONDS
    )
    print(output)
    assert status == 0, f"status {status} (124: it took too long, 125: the machine died)"
