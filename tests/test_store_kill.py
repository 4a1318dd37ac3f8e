"A store that is killed goes on and ends in the same bytes; two builders do not mix"
import os, signal, subprocess, sys, time

import pytest

from rsna_ich.core import InputError
from rsna_ich.data.store import Store

BUILDER = '''
import sys, time
import numpy as np, pandas as pd
from rsna_ich.core import InputError
from rsna_ich.data.store import build_store

def pixels(rows):
    "Noise with a bright disc: the same for the same series, one slice in twenty broken"
    time.sleep(float(sys.argv[3]))
    y,x = np.mgrid[:96,:96]
    out = []
    for i,path in zip(rows.number, rows.path):
        hu = np.random.default_rng(i).integers(-1010, -990, (96, 96)).astype(np.int16)
        hu[np.hypot(y-50, x-44) < 30 + i%5] = 40 + i%20
        out.append(InputError(path, 'broken') if i%20 == 7 else hu)
    return out

n = 120
table = pd.DataFrame(dict(image_id=[f'ID_{i:03}' for i in range(n)], path=[f'{i}.dcm' for i in range(n)], number=range(n),
    series_id=[f's{i//6}' for i in range(n)], slice_index=[i%6 for i in range(n)], status='ok'))
try: print(len(build_store(table, sys.argv[1], size=64, n_jobs=int(sys.argv[2]), read=pixels)))
except InputError as e: sys.exit(str(e))
'''

@pytest.fixture(scope='module')
def start(tmp_path_factory):
    "Start a builder as a process of its own; whatever is left of it is killed afterwards"
    script,running = tmp_path_factory.mktemp('script')/'builder.py',[]
    script.write_text(BUILDER)
    def _start(dest, n_jobs=1, wait=0.):
        p = subprocess.Popen([sys.executable, script, dest, str(n_jobs), str(wait)], env=os.environ | {'ICH_QUIET': '1'}, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        running.append(p)
        return p
    yield _start
    for p in running:
        try: os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        p.wait()

def content(folder): return {o.name: o.read_bytes() for o in sorted(folder.iterdir()) if o.name != '.lock'}

def finished(folder):
    "How many series the journal has"
    try: return (folder/'building.jsonl').read_bytes().count(b'\n') - 1
    except OSError: return 0

def until(condition, process, limit=60):
    end = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'nothing happens'
        time.sleep(.005)

def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

def ends(process):
    "Status, output and error of a builder that comes to its end"
    out,err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err.strip()

@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    "What a build that nobody interrupts leaves"
    dest = tmp_path_factory.mktemp('whole')
    assert ends(start(dest))[:2] == (0, '114')
    return content(dest)

@pytest.mark.parametrize('n_jobs,moments', [(1, (2, 9)), (2, (5,))])
def test_killed_and_started_again(start, tmp_path, whole, n_jobs, moments):
    dest = tmp_path/'killed'
    for i,series in enumerate(moments):
        p = start(dest, n_jobs, .08)
        until(lambda: finished(dest) >= series, p)
        time.sleep(.013*i)
        kill(p)
        n = finished(dest)
        assert series <= n < 20
        with pytest.raises(InputError, match='not finished'): Store(dest)
        assert len(Store(dest, unfinished=True)) == 6*n - sum(o//6 < n for o in range(7, 120, 20))
    assert ends(start(dest, n_jobs))[:2] == (0, '114')
    assert content(dest) == whole

def test_only_the_parent_killed(start, tmp_path, whole):
    "Its worker processes outlive it for a while, and may still leave what nobody fetches"
    dest = tmp_path/'orphans'
    p = start(dest, 2, .2)
    until(lambda: finished(dest) >= 3, p)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    assert list(dest.glob('.spool*')), 'the workers left nothing there'
    assert ends(start(dest, 2))[:2] == (0, '114')
    assert content(dest) == whole

def test_two_builders(start, tmp_path, whole):
    dest = tmp_path/'two'
    first = start(dest, wait=2.)
    until(lambda: finished(dest) >= 1, first)
    status,_,err = ends(start(dest))
    assert status == 1 and err.endswith('another process is building this store')
    kill(first)
    assert ends(start(dest))[:2] == (0, '114')
    assert content(dest) == whole

def test_two_builders_at_the_same_moment(start, tmp_path, whole):
    "Whoever comes second is told, or finds the store finished"
    dest = tmp_path/'race'
    for o in [start(dest), start(dest)]:
        status,out,err = ends(o)
        assert (status, out) == (0, '114') or err.endswith('another process is building this store')
    assert content(dest) == whole
