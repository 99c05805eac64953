"""What all tests share: the library's folder on the path, samples, what a skip means in CI."""

import os
import signal
import sys

import pytest
import sample
import tally

# Whichever test file comes first.
pytest.register_assert_rewrite('contracts', 'disktools', 'flowtools', 'killtools', 'powertools',
                               'runtools')

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
# The programs that tests start have what cron gives them: no locale, and none of the settings of
# Python with which faults stay hidden (.ci/run unsets the same ones).
for name in list(os.environ):
    if name.startswith(('LANG', 'LC_')) or name in (
            'PYTHONUNBUFFERED', 'PYTHONDONTWRITEBYTECODE', 'PYTHONHASHSEED', 'PYTHONIOENCODING',
            'PYTHONUTF8', 'PYTHONCOERCECLOCALE'):
        del os.environ[name]
os.environ['PYTHONPATH'] = os.pathsep.join(
    [ROOT] + [path for path in [os.environ.get('PYTHONPATH')] if path and path != ROOT])


def _nothing(number, frame):
    """Handle a signal by doing nothing; a program that is started gets the default again."""


def restore_signals():
    """Undo what nohup, cron and some CI do to signals that tests send.

    They start Python with signals ignored or blocked, which every program inherits that a test
    starts. A hangup does not end the tests themselves where nohup was asked to prevent that.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD,
                   signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, {signal.SIGINT: signal.default_int_handler,
                                   signal.SIGHUP: _nothing}.get(number, signal.SIG_DFL))


restore_signals()


def pytest_configure(config):
    sample.choose(config)


def pytest_collection_modifyitems(config, items):
    # Tests to be repeated have been in the sample.
    if not config.getoption('lf', False):
        drawn = sample.drawn(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in drawn])
        items[:] = [item for item in items if item in drawn]


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


def pytest_terminal_summary(terminalreporter):
    if tally.summary():
        terminalreporter.write_line(tally.summary())
    terminalreporter.write_line(sample.summary())
