"Two processes on one processor train to the same loss as one, within the spread between seeds"
import os, subprocess, sys

import numpy as np
import pandas as pd
import pytest

pytest.importorskip('accelerate')

from rsna_ich.learn.distributed import seed_tolerance

TRAINER = '''
import sys
import numpy as np, pandas as pd, torch
torch.set_num_threads(1)
from rsna_ich.learn.distributed import first_alone, join_processes
from rsna_ich.labels import SUBTYPES
from rsna_ich.learn.published import get_recipe
from rsna_ich.learn.recipes import Stage
from rsna_ich.data.store import build_store
from rsna_ich.learn.training import Run, held_out_rows

def pixels(rows):
    "Noise, and a bright disc where there is blood"
    y,x = np.mgrid[:48,:48]
    out = []
    for i,sick in zip(rows.number, rows.sick):
        hu = np.random.default_rng(i).integers(0, 60, (48, 48)).astype(np.int16)
        if sick: hu[np.hypot(y-24, x-16-i%16) < 5] += 25
        out.append(hu)
    return out

dest,seeds,processes = sys.argv[1:4]
join_processes()
n = 320
table = pd.DataFrame(dict(image_id=[f'ID_{i:03}' for i in range(n)], path=[f'{i}.dcm' for i in range(n)], number=range(n), sick=[int(i%8 < 4)*(i//8%2) for i in range(n)], patient_id=[f'p{i//8}' for i in range(n)],
    study_id=[f't{i//8}' for i in range(n)], series_id=[f's{i//8}' for i in range(n)], slice_index=[i%8 for i in range(n)], status='ok'))
store = first_alone(build_store, table, f'{dest}/store', size=40, n_jobs=1, read=pixels, crop=False)
sick = table.set_index('image_id').sick.loc[store.slices.image_id]
labels = pd.DataFrame({s: sick.astype('uint8') if s in ('any', 'subdural') else np.uint8(0) for s in SUBTYPES})
recipe = get_recipe('quick', stages=(Stage(40, 3, 32, lr=3e-3),), effects=False)
held = held_out_rows(store, labels, recipe) # the same for all seeds, which then differ in training alone
for seed in map(int, seeds.split(',')): Run(store, labels, get_recipe(recipe, seed=seed), f'{dest}/run_{seed}_{processes}', held).train_stages()
if processes == '2': Run(store, labels, get_recipe(recipe, stages=(Stage(40, 1, 32, lr=3e-3),)), f'{dest}/whole').train()
'''

SEEDS, ALSO_TWICE = range(1, 7), range(1, 4)


def train_both(folder):
    "Losses on held-out slices by seed and epoch: trained by one process, and by two"
    script = folder/'trainer.py'
    script.write_text(TRAINER)
    env = os.environ | {'ICH_QUIET': '1', 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true', 'CUDA_VISIBLE_DEVICES': ''}
    for seeds, processes in (SEEDS, 1), (ALSO_TWICE, 2):
        command = [sys.executable, '-W', 'ignore'] + (['-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', str(29500 + os.getpid() % 2000)] if processes == 2 else [])
        done = subprocess.run([*command, script, folder, ','.join(map(str, seeds)), str(processes)], env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    return [np.array([pd.read_csv(folder/f'run_{seed}_{n}'/'curves.csv').valid_loss for seed in seeds]) for n, seeds in ((1, SEEDS), (2, ALSO_TWICE))]


def test_two_processes_train_like_one(tmp_path):
    one, two = train_both(tmp_path)
    noise = seed_tolerance(one[:, -1], len(two))
    print(f'one process {one[:, -1].round(4)}, two {two[:, -1].round(4)}, tolerance {noise:.4f}')
    assert abs(two[:, -1].mean() - one[:, -1].mean()) < noise
    assert noise < one[:, 0].mean() - one[:, -1].mean() # a tolerance that a training of one epoch would not pass
    assert (tmp_path/'whole'/'bundle'/'config.json').exists() and len(list(tmp_path.glob('whole/stage_0*'))) == 2
