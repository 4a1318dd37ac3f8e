"Dataloaders whose workers are forked or spawned come to an end and give the slices that no workers give"
import os
import subprocess
import sys

import pytest

LOADER = '''
import multiprocessing, sys
import numpy as np, pandas as pd, torch
from rsna_ich.dataloaders import slice_dls
from rsna_ich.labels import SUBTYPES
from rsna_ich.store import build_store

def pixels(rows): return [np.full((32, 32), i, np.int16) for i in rows.slice_index]

if __name__ == '__main__':
    torch.set_num_threads(1)
    multiprocessing.set_start_method(sys.argv[2])
    table = pd.DataFrame([(f'ID_{p}_{i}', '', f'p{p}', f's{p}', i) for p in range(6) for i in range(8)], columns='image_id path patient_id series_id slice_index'.split())
    store = build_store(table, sys.argv[1], size=32, n_jobs=1, read=pixels, crop=False)
    labels = pd.DataFrame(0, store.slices.image_id, SUBTYPES, dtype='uint8')
    labels.loc[store.slices.slice_index.between(2, 4).to_numpy(), ['any', 'subdural']] = 1
    two, none = (slice_dls(store, labels, store.slices.patient_id == 'p0', size=32, bs=8, windowing='none', neighbours=1, augment=('flip', 'blur'), sample='balanced', num_workers=n, device='cpu') for n in (2, 0))
    a, b = (torch.cat([x for x,_ in o.valid]) for o in (two, none))
    assert torch.equal(a, b)
    if sys.argv[2] == 'fork':
        for epoch in range(2): assert len([x for x,_ in two.train]) == len(two.train)
    print('done')
'''


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers(tmp_path, method):
    script = tmp_path/'loader.py'
    script.write_text(LOADER)
    env = os.environ | {'ICH_QUIET': '1', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, script, tmp_path/'store', method], env=env, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == 'done', done.stderr[-2000:]
