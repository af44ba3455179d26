"""What can be seen without running: no dangerous calls, and dependencies that fit."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.faults.conftest import Figure

PACKAGE = Path(__file__).parents[2] / "daq_ioc"
MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal", "xmlrpc", "telnetlib", "ftplib"}
CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "tempfile.mktemp", "yaml.load"}


def dangers(source: str) -> list[str]:
    """Imports and calls by which data could become code, and shells."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            found += [name for name in names if name.partition(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            shell = any(
                keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
                for keyword in node.keywords
            )
            pickled = any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
                for keyword in node.keywords
            )
            if name in CALLS or shell or pickled:
                found.append(name)
    return found


def test_the_search_finds_what_it_looks_for() -> None:
    assert dangers("import pickle") == ["pickle"]
    assert dangers("from marshal import loads") == ["marshal"]
    assert dangers("eval(x)\nos.system(x)") == ["eval", "os.system"]
    assert dangers("subprocess.run(x, shell=True)") == ["subprocess.run"]
    assert dangers("np.load(x, allow_pickle=True)") == ["np.load"]


def test_nothing_dangerous_is_called(figure: Figure) -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    found = {str(path): bad for path in files if (bad := dangers(path.read_text("utf-8")))}
    figure(f"{len(files)} modules: no pickle, no shell, no code from data")
    assert not found


def test_security_rules_of_ruff() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "S", "--no-cache", str(PACKAGE)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_dependencies(figure: Figure) -> None:
    """Every one has a lowest version, and what is installed fits together."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    core = project["dependencies"]
    assert core
    assert not [each for each in core if ">=" not in each]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    figure(f"{len(core)} dependencies, each with a lowest version; what is installed fits")
