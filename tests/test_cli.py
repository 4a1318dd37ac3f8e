"The command line as a user has it: a process of its own, its files, its exit status"
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from rsna_ich.core import DISCLAIMER, real_data
from rsna_ich.inference import COLUMNS
from rsna_ich.labels import SUBTYPES

ICH = Path(sys.executable).parent/'ich'


def ich(*args, **kwargs):
    return subprocess.run([str(ICH), *map(str, args)], capture_output=True, text=True, env={**os.environ, 'ICH_QUIET': '1'}, **kwargs)


def needs(name):
    "Real data beside the checkout, or a skipped test that says what is missing"
    found = real_data(name)
    return pytest.mark.skipif(found is None, reason=f'no real data {name!r} beside this checkout'), found


ge_there, GE = needs('ge_head_study')
rsna_there, RSNA = needs('rsna')
awkward_there, AWKWARD = needs('awkward')


@pytest.fixture(scope='module')
def competition(tmp_path_factory):
    dest = tmp_path_factory.mktemp('cli')/'competition'
    done = ich('phantom', dest, '--patients', 10, '--seed', 8, '--size', 96, '--max-slices', 6, '--prevalence', .7)
    assert done.returncode == 0, done.stderr
    return dest


def test_help_loads_nothing_heavy():
    code = 'import rsna_ich.cli, sys; print([m for m in "torch fastai timm numpy pandas pydicom matplotlib".split() if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
    assert ich('--help').returncode == 0


@ge_there
def test_predict_a_real_study(tmp_path):
    done = ich('predict', GE, '--out', tmp_path/'out')
    assert done.returncode == 0, done.stderr
    slices = pd.read_csv(tmp_path/'out'/'slices.csv')
    assert list(slices.columns) == COLUMNS
    assert (len(slices), set(slices.status), slices.image_id.nunique()) == (28, {'ok'}, 28)
    assert slices[SUBTYPES].apply(lambda c: c.between(0, 1)).all(axis=None) and slices.positive.isin([0, 1]).all()
    assert (slices['any'] >= slices[SUBTYPES[1:]].max(axis=1) - 1e-9).all()
    assert sorted(slices.slice_index) == list(range(28))
    assert len(pd.read_csv(tmp_path/'out'/'studies.csv')) == 1
    assert len(pd.read_csv(tmp_path/'out'/'submission.csv')) == 28*6
    assert DISCLAIMER in done.stdout and DISCLAIMER in (tmp_path/'out'/'about.txt').read_text()


@rsna_there
def test_predict_competition_slices(tmp_path):
    done = ich('predict', RSNA, '--out', tmp_path/'out')
    assert done.returncode == 0, done.stderr
    slices = pd.read_csv(tmp_path/'out'/'slices.csv')
    assert sorted(slices.image_id) == sorted(p.stem for p in RSNA.glob('*.dcm'))
    judged = ich('evaluate', tmp_path/'out'/'slices.csv', RSNA/'stage_2_train.csv', '--out', tmp_path/'judged', '--subset')
    assert judged.returncode == 0, judged.stderr
    assert (tmp_path/'judged'/'report.html').exists()


@awkward_there
def test_predict_names_what_it_leaves_out(tmp_path):
    done = ich('predict', AWKWARD, '--out', tmp_path/'out')
    assert done.returncode == 1, done.stderr
    left = pd.read_csv(tmp_path/'out'/'left_out.csv')
    slices = pd.read_csv(tmp_path/'out'/'slices.csv')
    named = {Path(p).name for p in left.path}
    for name, why in {'philips_scout_256x512.dcm': 'scout', 'philips_DIRFILE_no_pixels': '', 'philips_exam_summary_RGB_modalityCT.dcm': 'colo',
                      'CT0012.fragmented_no_bot_jpeg_baseline.51.dcm': 'pylibjpeg-libjpeg'}.items():
        assert name in named and name in done.stderr
        reason = left[left.path.map(lambda p: Path(p).name) == name].reason.iloc[0]
        assert reason and why in reason
    ok = slices[slices.status == 'ok']
    assert slices[slices.status != 'ok'][SUBTYPES].isna().all(axis=None) and len(slices[slices.status != 'ok']) == len(left)
    assert len(ok) + len(left) >= len(list(AWKWARD.iterdir())) and len(ok) >= 12


@ge_there
def test_predict_needs_no_network(tmp_path):
    code = ('import socket, sys\n'
            'def refuse(*a, **k): raise OSError("no network")\n'
            'socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n'
            'from rsna_ich.cli import app\n'
            'sys.argv = ["ich", "predict", *sys.argv[1:]]\n'
            'app()')
    some = tmp_path/'some'/'deeper'
    some.mkdir(parents=True)
    for p in sorted(GE.glob('*.dcm'))[:4]: shutil.copy(p, some/p.stem)   # no .dcm ending, in a subfolder
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path/'some'), '--out', str(tmp_path/'out')], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path/'out'/'slices.csv')) == 4


def test_could_not_start(tmp_path):
    for args in [('predict', tmp_path/'nowhere'), ('predict', tmp_path), ('check', tmp_path/'nowhere'), ('train', tmp_path), ('evaluate', 'a.csv', 'b.csv'),
                 ('train', tmp_path, '--recipe', 'best'), ('predict', tmp_path, '--model', tmp_path)]:
        done = ich(*args, cwd=tmp_path)
        assert done.returncode == 2, (args, done.stdout, done.stderr)
        assert 'Traceback' not in done.stderr and done.stderr.strip()


def as_stage_1(competition, dest):
    shutil.copytree(competition, dest)
    for p in dest.iterdir():
        if p.name.startswith('stage_2'): p.rename(p.with_name(p.name.replace('stage_2', 'stage_1')))
    return dest


@pytest.mark.parametrize('stage', [1, 2])
def test_train_then_predict(competition, tmp_path, stage):
    folder = as_stage_1(competition, tmp_path/'stage_1') if stage == 1 else competition
    done = ich('train', folder, '--recipe', 'quick', '--out', tmp_path/'run')
    assert done.returncode == 1, done.stderr                      # the one truncated file of every simulated competition
    assert 'truncated' in done.stderr
    test = folder/f'stage_{stage}_test'
    done = ich('predict', test, '--out', tmp_path/'out', '--model', tmp_path/'run'/'bundle')
    assert done.returncode == 0, done.stderr
    sample = folder/f'stage_{stage}_sample_submission.csv'
    done = ich('submit', tmp_path/'out', sample, '--out', tmp_path/'submission.csv')
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path/'submission.csv').ID.tolist() == pd.read_csv(sample).ID.tolist()


def test_phantom_killed_and_continued(tmp_path):
    def digest(d): return {p.relative_to(d).as_posix(): hashlib.sha1(p.read_bytes()).hexdigest() for p in sorted(d.rglob('*')) if p.is_file() and p.suffix != '.parquet'}
    args = [str(ICH), 'phantom', str(tmp_path/'killed'), '--patients', '6', '--seed', '9', '--size', '64', '--max-slices', '6', '--jobs', '1']
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 120
    while not list((tmp_path/'killed'/'.parts').glob('*.parquet')) and time.time() < deadline: time.sleep(.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path/'killed'/'phantom.json').exists(), 'it was over before it could be killed'
    assert subprocess.run(args, capture_output=True).returncode == 0
    args[2] = str(tmp_path/'whole')
    assert subprocess.run(args, capture_output=True).returncode == 0
    left = [p for p in (tmp_path/'killed').rglob('*.tmp')]
    for p in left: shutil.rmtree(p)                                # a killed process cannot tidy up
    assert digest(tmp_path/'killed') == digest(tmp_path/'whole')
