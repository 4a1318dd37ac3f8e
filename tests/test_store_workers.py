"Dataloaders whose workers are forked or spawned come to an end and give the slices that no workers give"
import os
import subprocess
import sys

import pytest

LOADER = '''
import multiprocessing, sys
import numpy as np, pandas as pd, torch
from rsna_ich.learn.dataloaders import slice_dls
from rsna_ich.labels import SUBTYPES
from rsna_ich.data.store import build_store

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
    for epoch in range(2 if sys.argv[2] == 'fork' else 1): assert len([x for x,_ in two.train]) == len(two.train)
    print('done')
'''


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers(tmp_path, method):
    script = tmp_path/'loader.py'
    script.write_text(LOADER)
    env = os.environ | {'ICH_QUIET': '1', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, script, tmp_path/'store', method], env=env, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == 'done', done.stderr[-2000:]


TRAINER = LOADER.split('    two, none =')[0].replace('import slice_dls', 'import WaitingTime, slice_dls') + '''
    import timm
    from fastai.learner import Learner
    def loss(p, y): return torch.nn.functional.binary_cross_entropy_with_logits(p, y)
    dls = slice_dls(store, labels, store.slices.patient_id == 'p0', size=96, bs=8, windowing='bsb', neighbours=1, num_workers=0 if sys.argv[2] == 'none' else 2, device='cpu')
    waiting = WaitingTime()
    learn = Learner(dls, timm.create_model('resnet10t', in_chans=9, num_classes=6), loss_func=loss, cbs=waiting)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.train_iter == len(dls.train), learn.train_iter
    assert set(waiting.seconds) == {'starting', 'waiting', 'preparing', 'training'}, waiting.seconds
    print('done')
'''


@pytest.mark.parametrize('method', ['none', 'fork', 'spawn'])
def test_training_ends(tmp_path, method):
    "However workers are started, with every batch seen; how long training waits for them is measured in benchmarks/02_scale"
    script = tmp_path/'trainer.py'
    script.write_text(TRAINER.replace('set_start_method(sys.argv[2])', "set_start_method(sys.argv[2].replace('none', 'fork'))"))
    env = os.environ | {'ICH_QUIET': '1', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, script, tmp_path/'store', method], env=env, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == 'done', done.stderr[-2000:]
