"""What all tests share: the library's folder on the path, and what a skip means in CI."""

import os
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
# For the programs that tests start.
os.environ['PYTHONPATH'] = os.pathsep.join(
    [ROOT] + [path for path in [os.environ.get('PYTHONPATH')] if path and path != ROOT])

#: A skip whose reason begins so stays one in CI.
NOT_FOR = 'not for '


def _must_run(report):
    """Turn the skip of something that CI should have installed into a failure."""
    if os.environ.get('CI') != 'true' or not report.skipped or hasattr(report, 'wasxfail'):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.replace('Skipped: ', '', 1)
    if not reason.startswith(NOT_FOR):
        report.outcome = 'failed'
        report.longrepr = 'skipped in CI, where everything must run: %s' % reason


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    _must_run(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    outcome = yield
    _must_run(outcome.get_result())
