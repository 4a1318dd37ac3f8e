"A training that is killed goes on from its last epoch and ends in the same weights"
import os, signal, subprocess, sys, time

import pandas as pd
import pytest
from safetensors.torch import load_file

TRAINER = '''
import sys, time
import numpy as np, pandas as pd, torch
from rsna_ich.labels import SUBTYPES
torch.set_num_threads(1)
from rsna_ich.learn.published import get_recipe
from rsna_ich.learn.recipes import Stage
from rsna_ich.data.store import build_store
from rsna_ich.learn.training import Run
import rsna_ich.learn.learner as learner

def pixels(rows):
    "Noise, and a bright disc where there is blood"
    y,x = np.mgrid[:64,:64]
    out = []
    for i,sick in zip(rows.number, rows.sick):
        hu = np.random.default_rng(i).integers(0, 40, (64, 64)).astype(np.int16)
        if sick: hu[np.hypot(y-30, x-20-i%20) < 9] = 70
        out.append(hu)
    return out

dest,slow = sys.argv[1:3]
n = 320
table = pd.DataFrame(dict(image_id=[f'ID_{i:03}' for i in range(n)], path=[f'{i}.dcm' for i in range(n)], number=range(n), sick=[int(i%8 < 4)*(i//8%2) for i in range(n)], patient_id=[f'p{i//8}' for i in range(n)],
    study_id=[f't{i//8}' for i in range(n)], series_id=[f's{i//8}' for i in range(n)], slice_index=[i%8 for i in range(n)], status='ok'))
store = build_store(table, f'{dest}/store', size=48, n_jobs=1, read=pixels, crop=False)
sick = table.set_index('image_id').sick.loc[store.slices.image_id]
labels = pd.DataFrame({s: sick.astype('uint8') if s in ('any', 'subdural') else np.uint8(0) for s in SUBTYPES})
recipe = get_recipe('quick', pretrained=False, stages=(Stage(32, 3, 16, freeze=1), Stage(40, 3, 16)), ema=.9, clip=1., accumulate=3, sample='balanced', smoothing=.02, averaged=2, branches=2)

class Slow(learner.Callback):
    "Time to be killed in, that uses no processor"
    def after_batch(self): time.sleep(float(slow))
mine = learner.recipe_callbacks
learner.recipe_callbacks = lambda *args: [*mine(*args), Slow()]
Run(store, labels, recipe, f'{dest}/run').train()
'''


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    "Start a training as a process of its own; whatever is left of it is killed afterwards"
    script, running = tmp_path_factory.mktemp('script')/'trainer.py', []
    script.write_text(TRAINER)

    def _start(dest, slow=0.):
        env = os.environ | {'ICH_QUIET': '1', 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        p = subprocess.Popen([sys.executable, '-W', 'ignore', script, dest, str(slow)], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        running.append(p)
        return p
    yield _start
    for p in running:
        try: os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        p.wait()


def until(condition, process, limit=120):
    end = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'nothing happens'
        time.sleep(.01)


def test_killed_training_ends_where_the_unkilled_ends(start, tmp_path):
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    unkilled = start(whole)
    moments = 'stage_0_frozen.csv', 'stage_0.checkpoint.safetensors', 'stage_1.checkpoint.safetensors', 'stage_1_branch_1.checkpoint.safetensors'
    for moment in moments:
        p = start(killed, .04)
        until((killed/'run'/moment).exists, p)
        time.sleep(.15)
        os.killpg(p.pid, signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL
        assert not (killed/'run'/'bundle').exists()
    for p in unkilled, start(killed):
        out, err = p.communicate(timeout=180)
        assert p.returncode == 0, err
    for name in 'stage_0_frozen', 'stage_0', 'stage_1', 'stage_1_branch_1':
        a, b = (load_file(d/'run'/f'{name}.safetensors') for d in (whole, killed))
        assert [k for k in a if not (a[k] == b[k]).all()] == [], f'{name} differs'
    assert (whole/'run'/'curves.csv').read_bytes() == (killed/'run'/'curves.csv').read_bytes()
    assert (whole/'run'/'bundle'/'model.safetensors').read_bytes() == (killed/'run'/'bundle'/'model.safetensors').read_bytes()
    assert pd.read_parquet(whole/'run'/'held_out.parquet').equals(pd.read_parquet(killed/'run'/'held_out.parquet'))
    assert not list((killed/'run').rglob('*checkpoint*')) and not list(killed.rglob('*.tmp'))
