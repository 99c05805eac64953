"""The benchmarks run; how fast they are is not tested."""

import json
import subprocess
import sys

import pytest

from conftest import ROOT


def run_bench(*arguments):
    return subprocess.run([sys.executable, '-m', 'tests.bench'] + list(arguments), cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=120)


@pytest.mark.long
def test_each_benchmark_measures_a_flow_and_its_bound():
    done = run_bench('--json', '--runs', '1', '--scale', '0.01')
    assert done.returncode in (0, 1), done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {'programs', 'parallel_map', 'independent'} <= {one['name'] for one in found}
    assert (done.returncode == 0) == all(one['reached'] for one in found)
    for one in found:
        values = [one['value']] if 'value' in one else [
            one['microseconds'], one['bound_microseconds']]
        assert all(value > 0 or one.get('unit') == 'MB' for value in values), one


def test_growth_compares_a_benchmark_with_larger_ones_of_itself():
    done = run_bench('--json', '--runs', '1', '--scale', '0.01', 'independent', '--growth', '10')
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert len(found['each']) == 2 and found['times'] == max(found['each']) / found['each'][0]


def test_a_benchmark_that_misses_its_limit_says_so_and_exits_with_1():
    code = ('import sys; from tests.bench.__main__ import BENCHMARKS, main; '
            "BENCHMARKS['independent'].times = 0; "
            "sys.exit(main(['independent', '--runs', '1', '--scale', '0.01']))")
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    assert done.returncode == 1 and 'NOT REACHED' in done.stdout, done.stdout + done.stderr


def test_an_unknown_benchmark_is_a_usage_error_that_names_the_known_ones():
    done = run_bench('nosuch')
    assert done.returncode == 2
    assert "no benchmark 'nosuch'" in done.stderr and 'parallel_map' in done.stderr


def test_the_comparison_with_others_measures_a_chain_and_a_fan():
    done = subprocess.run([sys.executable, '-m', 'tests.bench.peers', '--json', '--steps', '20',
                           'sequent (inline)'], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['chain'] > 0 and found['fan'] > 0, found
