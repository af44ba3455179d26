"""Run the IOC as the README does, read its PVs as the README does, stop it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.ioc import client_environment, free_port

environment = os.environ | client_environment(free_port())


def get(name: str) -> str:
    """What the command-line client prints of a PV, as soon as it has been measured."""
    command = ["caproto-get", "--terse", "--no-repeater", "--timeout", "10", name]
    for _ in range(40):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        if done.returncode:
            sys.exit(f"{name} cannot be read: {done.stderr}")
        if done.stdout.strip() not in ("", "0", "disconnected"):
            return done.stdout.strip()
        time.sleep(0.5)
    sys.exit(f"{name} stays {done.stdout!r}")


ioc = subprocess.Popen(
    ["daq-ioc", "run", "ioc_configs/demo.toml"], stdout=subprocess.PIPE, text=True, env=environment
)
guard = threading.Timer(120, ioc.kill)
guard.start()
try:
    print(ioc.stdout.readline().strip() or sys.exit("the IOC did not start"), flush=True)
    for name in ("JS:VOLTAGE", "JS:TIME_TEXT", "JS:STATE"):
        print(name, get(name), flush=True)
    ioc.send_signal(signal.SIGTERM)
    status = ioc.wait(30)
    print("ended with status", status)
    sys.exit(status)
finally:
    guard.cancel()
    ioc.kill()
