"""A few of the bad days of `days.py`, which `nbs/benchmarks/04_hostile.ipynb` counts by the twenty"""
import os
import subprocess
import sys
from pathlib import Path

import pytest

DAYS = Path(__file__).with_name('days.py')
LIGHT = 'check', 'store', 'evaluate', 'predict'


@pytest.fixture(scope='module')
def work(tmp_path_factory): return tmp_path_factory.mktemp('days')


def day(way, command, work):
    "What one call of `days.py` says: it ends with 1 where something was lost"
    args = [sys.executable, '-W', 'ignore', str(DAYS), way, command, '--times', '2', '--seed', '1', '--work', str(work)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=600, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize('command', LIGHT)
def test_killed_and_started_again_ends_in_the_same_files(work, command):
    said = day('kill', command, work)
    assert "'tried': 2" in said and "'struck': 0" not in said


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='file systems of a given size are mounted in a namespace of Linux')
@pytest.mark.parametrize('command', ['store', 'predict'])
def test_a_full_disk_is_named_and_nothing_is_lost(work, command):
    sys.path.insert(0, str(DAYS.parent))
    from days import can_mount
    if not can_mount(): pytest.skip('this user may not mount in a namespace of its own')
    assert "'lost': 0" in day('full', command, work)


def test_two_runs_of_a_command_leave_the_same_bytes(work):
    assert 'two runs differ' not in day('kill', 'store', work)
