"""The option for full numbers, the figures at the end of the output, and an IOC to be harmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.bench import Bench

Figure = Callable[[str], None]
_FIGURES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="tests/faults with the full numbers")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    figures = config.stash.get(_FIGURES, [])
    if figures:
        terminalreporter.section("figures of tests/faults")
        for line in figures:
            terminalreporter.write_line(line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long variants have as long as they need, and that is bounded, too."""
    if config.getoption("--long", default=False):
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the full numbers are asked for."""
    return bool(request.config.getoption("--long", default=False))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Report a measured figure: at the end of the output, and in a JUnit report."""

    def report(line: str) -> None:
        request.config.stash[_FIGURES].append(f"{request.node.name}: {line}")
        request.node.user_properties.append(("figure", line))

    return report


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Start IOCs; each is stopped in order afterwards, unless it was killed."""
    with ExitStack() as stack:

        def start(**options: object) -> Bench:
            return stack.enter_context(Bench.running(tmp_path, **options))  # type: ignore[arg-type]

        yield start
