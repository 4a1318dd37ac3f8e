"An archive through several workers: the tables of one process, also where a worker or the whole run is killed"
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from joblib import parallel_config

from rsna_ich.core import read_journal
from rsna_ich.predict.predictor import Predictor
from rsna_ich.simulate.competition import write_competition

TABLES = 'slices.csv', 'studies.csv', 'left_out.csv'
PART = 5  # slices a portion: a study each

def tables(folder): return {name: (folder/name).read_bytes() for name in TABLES}
def portion_of(folder): return {k: len(read_journal(o)[1]) for k, o in enumerate(sorted(folder.rglob('finished.jsonl')))}


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    "Six patients, a series each, and a file that is none"
    folder = tmp_path_factory.mktemp('archive')/'scans'
    write_competition(folder.parent/'made', n_patients=8, seed=3, size=96, max_slices=5, test_share=.25, n_jobs=1)
    (folder.parent/'made'/'stage_2_train').rename(folder)
    (folder/'nothing.dcm').write_bytes(b'none')
    return folder


@pytest.fixture(scope='module')
def whole(archive):
    "What one process writes"
    out = archive.parent/'whole'
    Predictor(threads=1).predict_archive(archive, out, n_jobs=1, portion=PART)
    return tables(out)


def test_two_processes(archive, whole, tmp_path):
    done = Predictor().predict_archive(archive, tmp_path, n_jobs=2, portion=PART)
    assert tables(tmp_path) == whole
    assert done.left_out >= 1 and b'nothing.dcm' in whole['left_out.csv']
    assert not (tmp_path/'.unfinished').exists()
    in_memory = Predictor(threads=1).predict(archive, 2, portion=PART).save(tmp_path/'memory')
    assert tables(in_memory) == whole


def test_local_cluster(archive, whole, tmp_path):
    distributed = pytest.importorskip('distributed', reason='dask.distributed is not installed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, distributed.Client(cluster):
        with parallel_config('dask'): Predictor().predict_archive(archive, tmp_path, n_jobs=2, portion=PART)
    assert tables(tmp_path) == whole


CODE = '''
import sys, time
from rsna_ich.predict.predictor import Predictor
class Slow(Predictor):
    def predict_rows(self, rows):
        time.sleep(.3)
        return super().predict_rows(rows)
Slow(threads=1).predict_archive(sys.argv[1], sys.argv[2], n_jobs=int(sys.argv[3]), portion=5)
'''


@pytest.mark.skipif(os.name != 'posix', reason='kills a group of processes')
@pytest.mark.parametrize('jobs', [1, 2])
def test_killed_and_started_again(archive, whole, tmp_path, jobs):
    "Killed with all its workers, the run goes on from the journals and ends in the same tables"
    args = [sys.executable, '-W', 'ignore', '-c', CODE, str(archive), str(tmp_path), str(jobs)]
    first = subprocess.Popen(args, start_new_session=True, env=os.environ | {'ICH_QUIET': '1'})
    deadline = time.monotonic() + 300
    try:
        while sum(portion_of(tmp_path).values()) < 2:
            assert first.poll() is None and time.monotonic() < deadline, 'it was over before it could be killed'
            time.sleep(.02)
    finally: os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {o: o.read_bytes() for o in Path(tmp_path).rglob('finished.jsonl')}
    assert not (tmp_path/'slices.csv').exists()
    asked = []
    class Counting(Predictor):
        def predict_rows(self, rows):
            asked.append(rows.series_id.iloc[0])
            return super().predict_rows(rows)
    done_already = sum(len(read_journal(o)[1]) for o in before)
    Counting(threads=1).predict_archive(archive, tmp_path, n_jobs=1, portion=PART)
    assert tables(tmp_path) == whole
    series = len(set(asked)) + done_already
    assert len(asked) == len(set(asked))
    assert done_already >= 2 and series == n_series(whole)


def n_series(whole):
    import io
    import pandas as pd
    return len(pd.read_csv(io.BytesIO(whole['slices.csv']), keep_default_na=False).drop_duplicates(['study_id', 'series_id']))
