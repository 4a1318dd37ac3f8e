"The light install: what check, store, predict and evaluate need is in `requirements` alone, and what needs an extra says which"
import os
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rsna_ich.apps.kaggle import package_wheel
from rsna_ich.core import _EXTRAS
from rsna_ich.labels import SUBTYPES
from rsna_ich.simulate.competition import write_competition

ROOT = Path(__file__).resolve().parent.parent
CFG = ConfigParser(delimiters=['='])
CFG.read(ROOT/'settings.ini', encoding='utf-8')
CFG = CFG['DEFAULT']
ABSENT = sorted({m for modules in _EXTRAS.values() for m in modules.split()})
# Python runs this before anything else, in every process that the commands start too
AS_IF_ABSENT = f'''
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, *rest): return None if name.split('.')[0] in {ABSENT!r} else find(name, *rest)
PathFinder.find_spec = find_spec
'''


@pytest.fixture(scope='module')
def light(tmp_path_factory):
    "A function that runs Python with the wheel's files and without what the extras bring"
    site = tmp_path_factory.mktemp('light')/'site'
    site.mkdir()
    zipfile.ZipFile(package_wheel(site.parent)).extractall(site)
    (site/'sitecustomize.py').write_text(AS_IF_ABSENT)
    env = os.environ | dict(PYTHONPATH=str(site), ICH_QUIET='1')
    def run(*args):
        command = [sys.executable, *map(str, args)]
        return subprocess.run(command, cwd=site.parent, env=env, capture_output=True, text=True, timeout=300)
    where = run('-c', 'import rsna_ich; print(rsna_ich.__file__)').stdout
    assert where.startswith(str(site)), 'not the files of the wheel'
    return run


@pytest.fixture(scope='module')
def competition(tmp_path_factory):
    return write_competition(tmp_path_factory.mktemp('light')/'made', 3, seed=8, size=128, max_slices=4, n_jobs=1)


def test_the_blocker_blocks(light):
    for name in 'torch', 'sklearn', 'scipy': assert light('-c', f'import {name}').returncode == 1
    assert light('-c', 'import numpy, onnxruntime').returncode == 0


def test_check_store_predict_and_evaluate(light, competition, tmp_path):
    def ich(*args): return light('-m', 'rsna_ich.cli', *args)
    checked = ich('check', competition, '--out', tmp_path/'check')
    assert checked.returncode == 1 and 'truncated' in checked.stderr, checked.stderr
    stored = ich('store', competition/'stage_2_test', tmp_path/'store', '--size', 64)
    assert stored.returncode == 0, stored.stderr
    done = ich('predict', competition/'stage_2_test', '--out', tmp_path/'out')
    assert done.returncode == 0, done.stderr
    slices = pd.read_csv(tmp_path/'out'/'slices.csv')
    assert slices[SUBTYPES].notna().all().all() and len(slices) == len(list((competition/'stage_2_test').iterdir()))
    turned = ich('predict', competition/'stage_2_test', '--out', tmp_path/'turned', '--tta', 'flip,rotate,reverse', '--no-report', '--no-volumes')
    assert turned.returncode == 0 and len(pd.read_csv(tmp_path/'turned'/'slices.csv')) == len(slices), turned.stderr
    judged = ich('evaluate', tmp_path/'out', competition/'stage_2_test_labels.csv', '--out', tmp_path/'judged')
    assert judged.returncode == 0, judged.stderr
    page = (tmp_path/'judged'/'report.html').read_text(encoding='utf-8')
    assert 'log loss' in page and "rsna-ich[charts]" in page.replace('&#x27;', "'"), 'tables, and why there are no charts'
    assert 'rsna-ich[charts]' in judged.stdout + judged.stderr


@pytest.mark.parametrize('command', ['phantom', 'train'])
def test_what_needs_an_extra_says_which(light, competition, tmp_path, command):
    args = {'phantom': [tmp_path/'made', '--patients', 3], 'train': [competition, '--recipe', 'quick', '--out', tmp_path/'run']}
    done = light('-m', 'rsna_ich.cli', command, *args[command], '--jobs', 1)
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
    assert f'ich {command} needs' in done.stderr and "pip install 'rsna-ich[train]'" in done.stderr


def test_masks_need_nibabel_and_say_so_before_anything_is_read(light, competition, tmp_path):
    done = light('-m', 'rsna_ich.cli', 'outline', competition/'stage_2_test', '--out', tmp_path/'out', '--masks')
    assert done.returncode == 2 and "pip install 'rsna-ich[nifti]'" in done.stderr and 'headers' not in done.stderr, done.stderr
    assert not (tmp_path/'out').exists()


def test_all_gives_what_works_without_extras(light):
    done = light('-c', 'from rsna_ich.all import *; print(read_hu, load_predictor, evaluate); train')
    assert 'read_hu' in done.stdout, done.stderr
    assert "name 'train' is not defined" in done.stderr


def names(key): return {canonicalize_name(Requirement(r).name) for r in CFG[key].split()}


def test_extras_bring_what_the_package_says():
    "`core` names each module under the extra whose requirements bring it, and no light requirement among them"
    owners = packages_distributions()
    for extra, modules in _EXTRAS.items():
        brought = names(f'{extra}_requirements')
        if extra == 'train': brought |= {'torchvision'}  # fastai and timm bring it
        for module in modules.split():
            if module not in owners: continue  # Not installed here
            assert brought & set(map(canonicalize_name, owners[module])), f'{module} is not of the extra {extra}'
    heavy = {canonicalize_name(owner) for module in ABSENT for owner in owners.get(module, [])}
    assert names('requirements') & heavy == set()
