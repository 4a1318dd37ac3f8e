"The store on a Dask cluster of two processes: the same bytes as on one"
import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config

from rsna_ich.data.store import build_store

distributed = pytest.importorskip('distributed', reason='dask.distributed is not installed')

def pixels(rows): return [np.full((48, 48), i, np.int16) for i in rows.number]

def content(folder): return {o.name: o.read_bytes() for o in sorted(folder.iterdir()) if o.name != '.lock'}

def test_local_cluster(tmp_path):
    n = 60
    table = pd.DataFrame(dict(image_id=[f'ID_{i:03}' for i in range(n)], path='', number=range(n), series_id=[f's{i//6}' for i in range(n)]))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, distributed.Client(cluster):
        with parallel_config('dask'): store = build_store(table, tmp_path/'dask', size=32, n_jobs=2, read=pixels)
    assert len(store) == n
    build_store(table, tmp_path/'plain', size=32, n_jobs=1, read=pixels)
    assert content(tmp_path/'dask') == content(tmp_path/'plain')
