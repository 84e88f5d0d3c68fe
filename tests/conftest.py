"""Fixtures of several test files, and how CI runs with the extras only what they change.

pytest --write-skipped FILE     as always, and a line in FILE for each test that was skipped
pytest --only-skipped FILE      what FILE names and what is marked `extra`; now a skip is a failure
"""

import gc
import os
import shutil
import signal
from pathlib import Path

import pytest

# Before NumPy is imported, here and in the programs that tests start: for the small models of the
# tests threads are no gain, and beside other work they wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# pytest's own setting of where its temporary folders are: a disk in memory where there is room on
# one, because each of thousands of small files is waited for on others.
MEMORY = Path("/dev/shm")  # noqa: S108 - only folders that pytest makes there
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**31:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# Of a skip's reason: what the machine lacks, and no extra brings.
OF_THE_MACHINE = (
    "MINIBULE_SHARED",
    "mount",
    "needs root",
    "closed to other users",
    "needs two cores",
    "UTF-8 names",
    "tools/fetch.py",
)


@pytest.fixture(autouse=True, scope="session")
def matplotlib_in_tmp(tmp_path_factory):
    """matplotlib keeps a list of the machine's fonts: tests write nothing outside tmp."""
    os.environ["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("matplotlib"))


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk():
    """No test takes the power away, and of thousands of small files each would be waited for."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_reaches_the_programs_that_tests_start():
    """Also where the tests are a job in the background, whose programs would ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def two_threads():
    """What is computed side by side is really so: as for users, and not for the other tests."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two cores")
    from minibule.machine.threads import set_threads, threads

    usual = threads()
    set_threads(2)
    yield
    set_threads(usual)


@pytest.fixture(scope="session")
def smollm2_135m():
    """The real model's file, or a skip where it is neither fetched nor installed."""
    from minibule.errors import InputError
    from minibule.models.named import NAMED

    model = NAMED["smollm2-135m"]
    try:
        return model.find()
    except InputError:
        pytest.skip(f"needs {model.fetching}")


def pytest_collection_finish():
    """The thousands of tests stay to the end: the garbage collector need not look at them."""
    gc.freeze()


# -- what the extras change ------------------------------------------------------------------------


def pytest_addoption(parser):
    group = parser.getgroup("minibule")
    group.addoption("--write-skipped", metavar="FILE", help="write to FILE what was skipped")
    group.addoption("--only-skipped", metavar="FILE", help="run what FILE names, and skip nothing")


def pytest_configure(config):
    config.pluginmanager.register(Skipped(config), "skipped")


class Skipped:
    """The tests that were skipped, by their names; a whole file's where it was not collected."""

    def __init__(self, config):
        self.write, self.only = config.getoption("write_skipped"), config.getoption("only_skipped")
        self.reasons = {}

    def pytest_collection_modifyitems(self, config, items):
        if not self.only:
            return
        before = set(Path(self.only).read_text(encoding="utf-8").splitlines())
        names = {item: {item.nodeid, item.nodeid.partition("::")[0]} for item in items}
        lost = before.difference(*names.values()) - self.reasons.keys()
        if lost:
            raise pytest.UsageError(f"skipped before, and no tests now: {sorted(lost)}")
        chosen = [i for i in items if names[i] & before or i.get_closest_marker("extra")]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    def pytest_collectreport(self, report):
        if report.skipped:
            self.reasons[report.nodeid] = str(report.longrepr[2])

    def pytest_runtest_logreport(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            self.reasons[report.nodeid] = str(report.longrepr[2])

    def wanting(self):
        """What is skipped although it should not be: name -> reason."""
        if not self.only:
            return {}
        return {
            name: reason
            for name, reason in self.reasons.items()
            if not any(thing in reason for thing in OF_THE_MACHINE)
        }

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if self.write:
            Path(self.write).write_text(
                "".join(f"{name}\n" for name in self.reasons), encoding="utf-8"
            )
        if self.wanting() and session.exitstatus in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for name, reason in self.wanting().items():
            terminalreporter.line(f"STILL SKIPPED {name}: {reason}", red=True)
