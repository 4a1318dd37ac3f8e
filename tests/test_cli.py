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
from rsna_ich.predict.folder import SLICE_COLUMNS
from rsna_ich.labels import SUBTYPES

ICH = Path(sys.executable).parent/'ich'


def ich(*args, **kwargs):
    env = {**os.environ, 'ICH_QUIET': '1'}
    return subprocess.run([str(ICH), *map(str, args)], capture_output=True, text=True, env=env, **kwargs)

def run_code(code, *args): return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True)


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
    code = 'import rsna_ich.cli, sys; print({*"torch fastai timm numpy pandas pydicom matplotlib".split()} & {*sys.modules})'
    assert run_code(code).stdout.strip() == 'set()'
    assert ich('--help').returncode == 0


@ge_there
def test_predict_a_real_study(tmp_path):
    done = ich('predict', GE, '--out', tmp_path/'out')
    assert done.returncode == 0, done.stderr
    slices = pd.read_csv(tmp_path/'out'/'slices.csv')
    assert list(slices.columns) == SLICE_COLUMNS
    assert (len(slices), set(slices.status), slices.image_id.nunique()) == (28, {'ok'}, 28)
    assert slices[SUBTYPES].apply(lambda c: c.between(0, 1)).all(axis=None) and slices.positive.isin([0, 1]).all()
    assert sorted(slices.slice_index) == list(range(28))
    assert len(pd.read_csv(tmp_path/'out'/'studies.csv')) == 1
    assert len(pd.read_csv(tmp_path/'out'/'submission.csv')) == 28*6
    assert DISCLAIMER in done.stdout and DISCLAIMER in (tmp_path/'out'/'about.txt').read_text()


@ge_there
def test_predict_with_a_rule_for_any(tmp_path):
    done = ich('predict', GE, '--out', tmp_path/'out', '--any-rule', 'max')
    assert done.returncode == 0, done.stderr
    slices = pd.read_csv(tmp_path/'out'/'slices.csv')
    assert (slices['any'] >= slices[SUBTYPES[1:]].max(axis=1) - 1e-9).all()


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
    expected = {'philips_scout_256x512.dcm': 'scout', 'philips_DIRFILE_no_pixels': 'no Modality',
                'philips_exam_summary_RGB_modalityCT.dcm': 'colour', 'eCT_Supplemental.dcm': 'not HU', '693_UNCI.dcm': 'a copy of'}
    for name, why in expected.items():
        assert name in named and name in done.stderr
        reason = left[left.path.map(lambda p: Path(p).name) == name].reason.iloc[0]
        assert why in reason
    ok = slices[slices.status == 'ok']
    assert slices[slices.status != 'ok'][SUBTYPES].isna().all(axis=None) and len(slices[slices.status != 'ok']) == len(left)
    read = {Path(p).name for p in ok.path}
    assert read | named == {p.name for p in AWKWARD.iterdir()} and not read & named
    assert {'CT2_JLSL', 'CT2_JPLL', 'CT2_RLE', 'CT2_J2KR', 'J2K_pixelrep_mismatch.dcm', '693_J2KR.dcm'} <= read


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
    done = run_code(code, tmp_path/'some', '--out', tmp_path/'out')
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path/'out'/'slices.csv')) == 4


def test_module_is_the_command():
    "For launchers that want a module, such as torchrun"
    for args, status in ([], 2), (['--version'], 0), (['predict', 'nowhere'], 2):
        done = subprocess.run([sys.executable, '-m', 'rsna_ich.cli', *args], capture_output=True, text=True)
        assert (done.returncode, bool(done.stdout + done.stderr)) == (status, True), (args, done.stdout, done.stderr)


def test_could_not_start(tmp_path):
    for args in [('predict', tmp_path/'nowhere'), ('predict', tmp_path), ('check', tmp_path/'nowhere'), ('train', tmp_path),
                 ('evaluate', 'a.csv', 'b.csv'), ('train', tmp_path, '--recipe', 'best'),
                 ('predict', tmp_path, '--model', tmp_path)]:
        done = ich(*args, cwd=tmp_path)
        assert done.returncode == 2, (args, done.stdout, done.stderr)
        assert 'Traceback' not in done.stderr and done.stderr.strip()


def test_closed_pipe_is_no_error():
    "As in `ich recipes | head -1`: whoever reads has seen enough"
    process = subprocess.Popen([str(ICH), 'recipes', '--full'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() in (0, 1) and said == '', said


def as_stage_1(competition, dest):
    shutil.copytree(competition, dest)
    for p in dest.iterdir():
        if p.name.startswith('stage_2'): p.rename(p.with_name(p.name.replace('stage_2', 'stage_1')))
    return dest


@pytest.mark.parametrize('stage', [1, 2])
def test_train_then_predict(competition, tmp_path, stage):
    folder = as_stage_1(competition, tmp_path/'stage_1') if stage == 1 else competition
    done = ich('train', folder, '--recipe', 'quick', '--epochs', '1', '--out', tmp_path/'run')
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
    def digest(d):
        files = [p for p in sorted(d.rglob('*')) if p.is_file() and p.suffix != '.parquet']
        return {p.relative_to(d).as_posix(): hashlib.sha1(p.read_bytes()).hexdigest() for p in files}
    options = '--patients 3 --seed 9 --size 64 --max-slices 6 --jobs 1'.split()
    args = [str(ICH), 'phantom', str(tmp_path/'killed'), *options]
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 120
    while not list((tmp_path/'killed'/'.parts').glob('*.parquet')) and time.time() < deadline: time.sleep(.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list((tmp_path/'killed'/'.parts').glob('*.parquet')), 'it had not begun when it was killed'
    assert not (tmp_path/'killed'/'phantom.json').exists(), 'it was over before it could be killed'
    assert subprocess.run(args, capture_output=True).returncode == 0
    args[2] = str(tmp_path/'whole')
    assert subprocess.run(args, capture_output=True).returncode == 0
    left = [p for p in (tmp_path/'killed').rglob('*.tmp')]
    for p in left: shutil.rmtree(p)                                # a killed process cannot tidy up
    assert digest(tmp_path/'killed') == digest(tmp_path/'whole')


HEAVY = 'torch fastai timm torchvision matplotlib seaborn nilearn sklearn skimage'.split()


def small_folder(competition, dest):
    "The test slices of a simulated competition"
    return Path(shutil.copytree(competition/'stage_2_test', dest))


def test_shipped_bundle_has_its_plans():
    from rsna_ich.model.bundle import default_bundle
    from rsna_ich.predict.onnx import has_onnx, load_onnx
    assert has_onnx(default_bundle()), 'run onnx_export.export_onnx on it'
    load_onnx(default_bundle())                                    # raises if they were made for other weights
    assert sum(p.stat().st_size for p in default_bundle().iterdir()) <= 10e6


def test_predict_imports_nothing_heavy(competition, tmp_path):
    code = ('import atexit, sys\n'
            f'atexit.register(lambda: print("LOADED", *sorted(set(sys.modules) & set({HEAVY!r}))))\n'
            'from rsna_ich.cli import app\n'
            'sys.argv = ["ich", "predict", *sys.argv[1:]]\n'
            'app()')
    done = run_code(code, competition/'stage_2_test', '--out', tmp_path/'out')
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith('LOADED')


def test_predictions_are_not_overwritten_by_a_slip(competition, tmp_path):
    folder = small_folder(competition, tmp_path/'scans')
    assert ich('predict', folder, '--out', tmp_path/'out').returncode == 0
    before = (tmp_path/'out'/'slices.csv').read_bytes()
    (tmp_path/'out'/'slices.csv').write_bytes(before + b'\n')
    again = ich('predict', folder, '--out', tmp_path/'out')
    assert again.returncode == 2 and '--overwrite' in again.stderr
    assert ich('predict', folder, '--out', tmp_path/'out', '--overwrite').returncode == 0
    assert (tmp_path/'out'/'slices.csv').read_bytes() == before
    assert 'any_ml' in (tmp_path/'out'/'studies.csv').read_text()
    assert ich('predict', folder, '--out', tmp_path/'out', '--overwrite', '--no-volumes').returncode == 0 # as an archive's tables are
    archive = ich('predict', folder, '--out', tmp_path/'archive', '--archive')
    assert archive.returncode == 0 and 'Research software' in archive.stdout
    for name in ('slices.csv', 'studies.csv', 'left_out.csv'):
        assert (tmp_path/'archive'/name).read_bytes() == (tmp_path/'out'/name).read_bytes(), name


def test_predict_stopped_and_continued(competition, tmp_path):
    "Ctrl-C after the first series; the same command then ends in the same files"
    code = ('import sys\n'
            'from rsna_ich.predict.predictor import Predictor\n'
            'whole, calls = Predictor.predict_rows, []\n'
            'def stop(self, rows):\n'
            '    calls.append(1)\n'
            '    if len(calls) > 1: raise KeyboardInterrupt\n'
            '    return whole(self, rows)\n'
            'Predictor.predict_rows = stop\n'
            'from rsna_ich.cli import app\n'
            'sys.argv = ["ich", "predict", *sys.argv[1:]]\n'
            'app()')
    args = [str(competition/'stage_2_test'), '--out', str(tmp_path/'out')]
    done = run_code(code, *args)
    assert done.returncode == 130 and 'goes on from here' in done.stderr, done.stderr
    journal, = (tmp_path/'out'/'.unfinished').rglob('finished.jsonl')
    assert len(journal.read_text().splitlines()) == 2 and not (tmp_path/'out'/'slices.csv').exists()
    assert ich('predict', *args).returncode == 0
    assert ich('predict', args[0], '--out', tmp_path/'whole').returncode == 0
    for name in ('slices.csv', 'studies.csv', 'submission.csv', 'left_out.csv'):
        assert (tmp_path/'out'/name).read_bytes() == (tmp_path/'whole'/name).read_bytes(), name
    assert not (tmp_path/'out'/'.unfinished').exists()


def test_untidy_folder(competition, tmp_path):
    folder = small_folder(competition, tmp_path/'scans')
    n = len(list(folder.iterdir()))
    first = sorted(folder.glob('*.dcm'))[0]
    shutil.copy(first, folder/f'{first.stem} copy.dcm')
    (folder/'labels.csv').write_text('ID,Label\n')
    archive = shutil.make_archive(tmp_path/'scans', 'zip', competition/'stage_2_test')
    shutil.copy(archive, folder/'more.zip')
    done = ich('predict', folder, '--out', tmp_path/'out')
    assert done.returncode == 1, done.stderr
    slices, left = pd.read_csv(tmp_path/'out'/'slices.csv'), pd.read_csv(tmp_path/'out'/'left_out.csv')
    assert slices.status.eq('ok').sum() == n and not slices.image_id[slices.status.eq('ok')].str.contains('~').any()
    assert sorted(Path(p).name for p in left.path) == sorted([f'{first.stem} copy.dcm', 'more.zip'])
    assert 'labels.csv' in done.stdout
    (tmp_path/'damaged.zip').write_bytes(Path(archive).read_bytes()[:3000])
    for args in [('predict', tmp_path/'damaged.zip'), ('predict', folder, '--jobs', '-3'), ('predict', folder, '--tta', 'zoom')]:
        done = ich(*args, '--out', tmp_path/'none')
        assert done.returncode == 2 and 'Traceback' not in done.stderr, (args, done.stderr)
        assert not (tmp_path/'none'/'slices.csv').exists()


def test_evaluate_takes_the_folder_of_predictions(competition, tmp_path):
    assert ich('predict', competition/'stage_2_train', '--out', tmp_path/'out').returncode == 1  # the truncated file
    done = ich('evaluate', tmp_path/'out', competition/'stage_2_train.csv', '--out', tmp_path/'judged')
    assert done.returncode == 1 and 'left out' in done.stderr, done.stderr
    assert 'what the studies.csv of the predictions says' in done.stdout
    assert (tmp_path/'judged'/'report.html').exists()
