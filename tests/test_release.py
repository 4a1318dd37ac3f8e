"What is released: wheel and sdist are whole and run outside the checkout, and no licence stands in a user's way"
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from licences import needed, problems, table
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rsna_ich.labels import SUBTYPES
from rsna_ich.simulate.patient import simulate_patient
from rsna_ich.simulate.competition import FAMILIES, make_id, write_scan

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ('setup.py settings.ini pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md CITATION.cff CONTRIBUTING.md '
           'constraints.txt').split()
CFG = ConfigParser(delimiters=['='])
CFG.read(ROOT/'settings.ini', encoding='utf-8')
CFG = CFG['DEFAULT']
EXTRAS = [k.removesuffix('_requirements') for k in CFG if k.endswith('_requirements')]
ASKED = [Requirement(r) for k in CFG if k.endswith('requirements') for r in CFG[k].split()]


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "Wheel and sdist, the wheel built from the sdist, from a copy so that nothing is left in the checkout"
    folder = tmp_path_factory.mktemp('release')
    for name in SOURCES: shutil.copy(ROOT/name, folder)
    shutil.copytree(ROOT/'rsna_ich', folder/'rsna_ich', ignore=shutil.ignore_patterns('__pycache__', '.*'))
    (folder/'tests/data').mkdir(parents=True)
    (folder/'tests/data/patient.dcm').write_text('must not be released')
    command = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder/'dist', folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'is absent from the `packages` configuration' not in done.stdout + done.stderr
    return folder/'dist'


@pytest.fixture(scope='module')
def wheel(dist): return next(dist.glob('*.whl'))


def test_wheel_has_what_it_needs_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    files = [p for p in (ROOT/'rsna_ich').rglob('*') if p.is_file() and '__pycache__' not in p.parts and p.name[0] != '.']
    library = {p.relative_to(ROOT).as_posix() for p in files}
    assert set(n for n in names if '.dist-info/' not in n) == library
    assert {'rsna_ich/py.typed', 'rsna_ich/bundles/default/model.safetensors', 'rsna_ich/bundles/default/README.md'} <= library
    assert any(n.endswith('LICENSE') for n in names)


def test_sdist_has_no_data(dist):
    names = [n.split('/', 1)[-1] for n in tarfile.open(next(dist.glob('*.tar.gz'))).getnames()]
    assert {'settings.ini', 'setup.py', 'rsna_ich/bundles/default/config.json'} <= set(names)
    assert not [n for n in names if n.startswith(('tests', 'nbs', 'docs')) or n.endswith(('.dcm', '.png', '.ipynb'))]


def test_metadata(wheel):
    from email.parser import Parser
    with zipfile.ZipFile(wheel) as z:
        meta = Parser().parsestr(z.read(next(n for n in z.namelist() if n.endswith('/METADATA'))).decode())
    assert set(EXTRAS) == set(meta.get_all('Provides-Extra')) and {'kaggle', 'cluster', 'dev', 'hub'} <= set(EXTRAS)
    assert meta['Requires-Python'] == '>=3.11'
    asked = [Requirement(r) for r in meta.get_all('Requires-Dist')]
    assert {r.name for r in asked if not r.marker} == {Requirement(r).name for r in CFG['requirements'].split()}
    assert all(r.url is None for r in asked)  # An index takes no requirement by address
    links = re.findall(r'\]\(([^)\s]+)', meta.get_payload())
    assert links and [link for link in links if not re.match('https?:|#', link)] == [], 'a link that works in the repository alone'


def test_kaggle_wheel_is_the_same(wheel, tmp_path):
    "`kaggle.package_wheel`, which needs no build, packs the same files"
    from rsna_ich.apps.kaggle import package_wheel
    def library(path): return {n: z.read(n) for z in [zipfile.ZipFile(path)] for n in z.namelist() if '.dist-info/' not in n}
    assert library(package_wheel(tmp_path)) == library(wheel)


def test_wheel_predicts_outside_the_checkout(wheel, tmp_path):
    "Unpacked elsewhere, called elsewhere: `ich predict` with the bundle that is in the wheel"
    site, scans = tmp_path/'site', tmp_path/'scans'
    zipfile.ZipFile(wheel).extractall(site)
    scan = simulate_patient(5, size=128, max_slices=2)
    same = dict(patient=make_id('p', digits=8), study=make_id('s', digits=10), series=make_id('r', digits=10))
    ids = [dict(same, image=make_id(k)) for k in range(len(scan))]
    write_scan(scan, scans, ids, FAMILIES[0])
    code = f'import rsna_ich; assert rsna_ich.__file__.startswith({str(site)!r}); from rsna_ich.cli import app; app()'
    env = os.environ | dict(PYTHONPATH=str(site), ICH_QUIET='1', HF_HUB_OFFLINE='1')
    command = [sys.executable, '-c', code, 'predict', scans, '--out', 'found', '--jobs', '1']
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    slices = pd.read_csv(tmp_path/'found/slices.csv')
    assert len(slices) == len(scan) and slices[SUBTYPES].notna().all().all()


def test_constraints_name_versions_only():
    "Names and versions, no addresses; and every requirement has its version"
    lines = [line for line in (ROOT/'constraints.txt').read_text().splitlines() if line and line[0] != '#']
    pins = [Requirement(line) for line in lines]
    assert all(str(p.specifier).startswith('==') and p.url is None for p in pins)
    names = {canonicalize_name(p.name) for p in pins} | {'setuptools'}
    lacking = sorted({canonicalize_name(r.name) for r in ASKED} - names)
    assert lacking == [], 'run tools/freeze.py'
    pinned = {canonicalize_name(p.name): str(p.specifier).removeprefix('==') for p in pins}
    wrong = [str(r) for r in ASKED if (v := pinned.get(canonicalize_name(r.name))) and not r.specifier.contains(v)]
    assert wrong == [], 'constraints.txt is not what settings.ini asks for'


# Licences

def test_no_licence_forbids_commercial_use():
    rows = table(['train'])
    assert len(rows) > 50
    assert problems(rows) == []


def test_extras_neither():
    assert problems(table(EXTRAS)) == []


def test_forbidden_licences_are_found():
    licences = dict(a='GPL-3.0-or-later', b='GNU Lesser General Public License v3 (LGPLv3)', c='MIT', d='', e='CC-BY-NC-4.0',
                    g='GNU Affero General Public License v3')
    rows = [*((name, '1', text) for name, text in licences.items()), ('not installed', '', '')]
    assert [line[0] for line in problems(rows)] == ['d', 'a', 'e', 'g']


def test_gpl_decoder_is_not_needed(): assert 'pylibjpeg-libjpeg' not in needed(EXTRAS)


# What a repository's visitor meets

def test_workflows_and_templates_can_be_read():
    for path in [*(ROOT/'.github').rglob('*.yml'), ROOT/'CITATION.cff']: yaml.safe_load(path.read_text(encoding='utf-8'))
    for path in (ROOT/'.github/ISSUE_TEMPLATE').glob('*.md'):
        front = yaml.safe_load(path.read_text(encoding='utf-8').split('---')[1])
        assert front['name'] and front['about'], path.name
        warns = 'patient' in path.read_text(encoding='utf-8')
        assert warns or front['labels'] == 'enhancement', 'it says that no patient data belongs there'


def test_shipped_bundle_names_itself():
    bundle = ROOT/'rsna_ich/bundles/default'
    config, card = json.loads((bundle/'config.json').read_text()), (bundle/'README.md').read_text()
    assert config['name'] in card and 'not a medical device' in card and config['trained_on'] in card
