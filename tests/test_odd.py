"""Odd inputs: folders that change, may not be read or written, lead in circles, names and paths of every kind, clocks that
jump, two processes on one output. Each command does its work, or leaves out by name what it cannot use; the rest is whole."""
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mutator import as_bytes, slice_of

from rsna_ich.labels import SUBTYPES

TOOK = re.compile(rb'; [\d.]+ s</p>')  # How long a page says that the work took

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='commands are forked here')
READ = 'check', 'store', 'predict'  # The commands that read a folder of slices
DONE, SOME, NOT = 0, 1, 2  # Exit statuses: done, with files left out, could not start


@pytest.fixture(scope='module')
def bench():
    "The process of `odd.py`"
    env = os.environ | dict(ICH_QUIET='1', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    args = [sys.executable, '-W', 'ignore', str(Path(__file__).with_name('odd.py'))]
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as p:
        assert p.stdout.readline() == 'ready\n'
        yield p
        p.stdin.close()


@pytest.fixture
def ich(bench, tmp_path):
    "Run commands in `tmp_path`, together where there are several: (status, what was said) of each, never a traceback"
    def run(*commands, **more):
        commands = [list(map(os.fspath, o)) for o in commands]
        bench.stdin.write(json.dumps(dict(folder=str(tmp_path), commands=commands, **more)) + '\n')
        bench.stdin.flush()
        found = json.loads(bench.stdout.readline())
        for status, said in found: assert 'Traceback' not in said and status in (DONE, SOME, NOT), said
        return found
    return run


def study(folder, n=6, patient='P', name='{:02}.dcm'):
    "A folder of `n` slices"
    os.makedirs(folder, exist_ok=True)
    for i in range(n):
        ds = slice_of(InstanceNumber=i + 1, ImagePositionPatient=[0, 0, 5*i], PatientID=patient, BodyPartExamined='HEAD')
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f'1.2.{len(patient)}', f'1.2.{len(patient)}.1'
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f'1.2.3.{len(patient)}.{i + 1}'
        with open(os.path.join(folder, name.format(i)), 'wb') as f: f.write(as_bytes(ds))
    return folder


def reading(command, source, out):
    "The arguments of a command that reads `source` and writes `out`"
    return dict(check=['check', source, '--out', out, '--pixels', '--jobs', '1'], store=['store', source, out, '--size', '48', '--jobs', '1'],
                predict=['predict', source, '--out', out, '--jobs', '1'])[command]


def read(out):
    "How many slices an output holds that were read"
    path = next(out/o for o in ('files.parquet', 'slices.parquet', 'slices.csv') if (out/o).exists())
    with path.open('rb') as f: table = pd.read_csv(f) if path.suffix == '.csv' else pd.read_parquet(f)
    return int(table.status.eq('ok').sum())


def left_out(said):
    "What a command says that it left out, one line each"
    return '\n'.join(o for o in said.splitlines() if o.startswith('left out: '))


def truth(path, n=6, patient='P'):
    "The labels of a study, long; its third slice bleeds"
    rows = [f'1.2.3.{len(patient)}.{i + 1}_{s},{int(i == 2)}' for i in range(n) for s in SUBTYPES]
    path.write_text('\n'.join(['ID,Label', *rows, '']))
    return path


# What is read

@pytest.mark.parametrize('command', READ)
def test_nothing_odd(ich, tmp_path, command):
    "The same folder, undisturbed: what follows differs from this by one thing"
    [(status, _)] = ich(reading(command, study(tmp_path/'in'), 'out'))
    assert status == DONE and read(tmp_path/'out') == 6


@pytest.mark.parametrize('command', READ)
@pytest.mark.parametrize('name', ['a b', 'Schädel Übung', '頭部', 'zeile\nzwei', '%s{}', '-x', '\\xe9', os.fsdecode(b'caf\xe9')])
def test_names(ich, tmp_path, command, name):
    "Names of folders, files and outputs with spaces, umlauts, new lines and bytes that are no UTF-8"
    source = study(os.path.join(tmp_path, f'in{name}'), name=name.replace('{}', '') + '{:02}')
    out = os.path.join(tmp_path, f'out{name}')
    [(status, said)] = ich(reading(command, source, out))
    assert status == DONE and read(Path(out)) == 6, said


@pytest.mark.parametrize('command', READ)
def test_read_only_input(ich, tmp_path, command):
    "Slices and folder may be read and not written"
    for path in study(tmp_path/'in').iterdir(): path.chmod(0o444)
    (tmp_path/'in').chmod(0o555)
    [(status, said)] = ich(reading(command, tmp_path/'in', 'out'), before='without_power')
    assert status == DONE and read(tmp_path/'out') == 6, said


@pytest.mark.parametrize('command', READ)
def test_no_permission(ich, tmp_path, command):
    "A slice and a folder that may not be read are named; the others are read"
    study(tmp_path/'in')
    study(tmp_path/'in'/'closed', patient='QQ')
    (tmp_path/'in'/'03.dcm').chmod(0)
    (tmp_path/'in'/'closed').chmod(0)
    [(status, said)] = ich(reading(command, tmp_path/'in', 'out'), before='without_power')
    (tmp_path/'in'/'closed').chmod(0o755)
    assert status == SOME and read(tmp_path/'out') == 5
    assert left_out(said).count('Permission denied') == 2


@pytest.mark.parametrize('command', READ)
def test_links_in_circles(ich, tmp_path, command):
    "Links to themselves, to each other, to nothing, to the folder and to the one above it"
    folder = study(tmp_path/'in')
    for name, target in dict(itself='itself', a='b', b='a', gone='nowhere', here='.', up='..').items(): (folder/name).symlink_to(target)
    [(status, said)] = ich(reading(command, folder, 'out'))
    assert status == SOME and read(tmp_path/'out') == 6
    assert left_out(said).count('Too many levels of symbolic links') == 3 and 'not followed' in said


@pytest.mark.parametrize('command', READ)
def test_a_folder_that_changes(ich, tmp_path, command):
    "Between the listing and the reading a file grows, one is cut, one becomes a folder, one goes, one comes"
    folder = study(tmp_path/'in')
    [(status, said)] = ich(reading(command, folder, 'out'), before='spoil', options=[str(folder)])
    assert status == SOME and read(tmp_path/'out') == 3
    assert all(o in said for o in ('03.dcm: truncated', '04.dcm: cannot be opened: a folder', '05.dcm: cannot be opened: No such file'))


@pytest.mark.parametrize('command', READ)
def test_a_folder_that_vanishes(ich, tmp_path, command):
    "All of it is gone once it was listed: said, and no traceback"
    folder = study(tmp_path/'in')
    [(status, said)] = ich(reading(command, folder, 'out'), before='vanish', options=[str(folder)])
    assert status in (SOME, NOT) and 'o such' in said


@pytest.mark.parametrize('command', READ)
def test_long_paths(ich, tmp_path, command):
    "Names of 255 bytes are read; what lies deeper than 4,096 is named"
    folder = study(tmp_path/'in')
    study(folder/'n', patient='QQ', name='n'*249 + '{:02}.dcm')
    here = os.getcwd()
    try:
        os.chdir(folder)
        for _ in range(18):
            os.mkdir('x'*240)
            os.chdir('x'*240)
        study('.', patient='RRR')
    finally: os.chdir(here)
    [(status, said)] = ich(reading(command, folder, 'out'))
    assert status == SOME and read(tmp_path/'out') == 12 and 'File name too long' in said


@pytest.mark.parametrize('command', READ)
def test_the_same_study_twice(ich, tmp_path, command):
    "The second copy of each slice is named and not counted"
    study(tmp_path/'in'/'a')
    study(tmp_path/'in'/'b')
    [(status, said)] = ich(reading(command, tmp_path/'in', 'out'))
    assert status == SOME and read(tmp_path/'out') == 6 and left_out(said).count('a copy of') == 6


@pytest.mark.parametrize('command', READ)
def test_files_that_are_not_whole_yet(ich, tmp_path, command):
    "What a killed process left under a temporary name is no slice of the folder"
    folder = study(tmp_path/'in')
    study(folder/'.07.dcm.0123abcd.tmp', n=1, patient='QQ')
    [(status, _)] = ich(reading(command, folder, 'out'))
    assert status == DONE and read(tmp_path/'out') == 6


@pytest.mark.parametrize('command', READ)
@pytest.mark.parametrize('seconds', [0, -10**9, 2**34 - 1])
def test_times_before_1980_and_far_ahead(ich, tmp_path, command, seconds):
    "Files of 1938, 1970 and 2514"
    folder = study(tmp_path/'in')
    for path in folder.iterdir(): os.utime(path, (seconds, seconds))
    [(status, _)] = ich(reading(command, folder, 'out'))
    assert status == DONE and read(tmp_path/'out') == 6


@pytest.mark.parametrize('command', READ)
def test_a_clock_that_goes_back(ich, tmp_path, command):
    "Each look at the clock shows a year earlier"
    [(status, _)] = ich(reading(command, study(tmp_path/'in'), 'out'), before='clock_goes_back')
    assert status == DONE and read(tmp_path/'out') == 6


# What is written

@pytest.mark.parametrize('command', [*READ, 'evaluate', 'kaggle'])
def test_read_only_output(ich, tmp_path, command):
    "Where nothing may be written the folder is named"
    source = study(tmp_path/'in')
    labels = truth(tmp_path/'truth.csv')
    if command == 'evaluate': ich(reading('predict', source, 'predictions'))
    closed = tmp_path/'closed'
    closed.mkdir(mode=0o555)
    args = dict(evaluate=['evaluate', 'predictions', labels, '--out', closed/'out'],
                kaggle=['kaggle', 'build', '--dest', closed/'out', '--user', 'somebody', '--no-wheels'])
    [(status, said)] = ich(args.get(command) or reading(command, source, closed/'out'), before='without_power')
    assert status == NOT and 'Permission denied' in said and 'closed' in said and not list(closed.iterdir())


@pytest.mark.parametrize('command', READ)
def test_output_of_the_longest_name(ich, tmp_path, command):
    "A folder of 255 bytes is written, one of 256 refused by name"
    source = study(tmp_path/'in')
    (one, _), (two, said) = ich(reading(command, source, 'y'*255), reading(command, source, 'y'*256))
    assert one == DONE and read(tmp_path/('y'*255)) == 6
    assert two == NOT and 'File name too long' in said


@pytest.mark.parametrize('command', READ)
def test_output_with_what_a_killed_process_left(ich, tmp_path, command):
    "Temporary files and folders beside the output's own are no obstacle"
    out = tmp_path/'out'
    (out/'.slices.csv.0123abcd.tmp').mkdir(parents=True)
    (out/'.slices.csv.0123abcd.tmp'/'slices.csv').write_text('half')
    (out/'.report.html.0123abcd.tmp').write_text('half')
    [(status, _)] = ich(reading(command, study(tmp_path/'in'), 'out'))
    assert status == DONE and read(out) == 6


@pytest.mark.parametrize('command', [*READ, 'evaluate'])
def test_two_processes_on_one_output(ich, tmp_path, command):
    "Both end in the same whole result, or the second one says why not"
    source = study(tmp_path/'in')
    labels = truth(tmp_path/'truth.csv')
    if command == 'evaluate': ich(reading('predict', source, 'predictions'))
    args = ['evaluate', 'predictions', labels, '--out', 'out'] if command == 'evaluate' else reading(command, source, 'out')
    alone = [str(o).replace('out', 'alone') if o == 'out' else o for o in args]
    ich(alone)
    both = ich(args, args)
    assert DONE in [status for status, _ in both], both
    names = {p.name for p in (tmp_path/'alone').iterdir()}
    assert names <= {p.name for p in (tmp_path/'out').iterdir()}
    compared = names & {'slices.csv', 'studies.csv', 'submission.csv', 'hu.npy', 'slices.parquet', 'quality.csv'}
    if command == 'evaluate': compared = {'report.html'}
    assert compared
    for name in compared: assert TOOK.sub(b'', (tmp_path/'alone'/name).read_bytes()) == TOOK.sub(b'', (tmp_path/'out'/name).read_bytes()), name


def test_the_same_seed_twice_is_the_same_bytes(ich, tmp_path):
    "Store and predictions, byte by byte; the weights are in `test_training_kill.py`"
    source = study(tmp_path/'in')
    for out in 'one', 'two': ich(reading('store', source, f's_{out}'), reading('predict', source, f'p_{out}'))
    for name in 's_{}/hu.npy', 's_{}/slices.parquet', 'p_{}/slices.csv', 'p_{}/studies.csv', 'p_{}/submission.csv':
        assert (tmp_path/name.format('one')).read_bytes() == (tmp_path/name.format('two')).read_bytes(), name


def test_old_files_in_what_kaggle_gets(ich, tmp_path):
    "A bundle whose files are from 1970 goes into a zip, which knows no year before 1980"
    from rsna_ich.model.bundle import default_bundle
    bundle = tmp_path/'bundle'
    bundle.mkdir()
    for path in default_bundle().iterdir():
        if path.is_file():
            (bundle/path.name).write_bytes(path.read_bytes())
            os.utime(bundle/path.name, (0, 0))
    args = ['kaggle', 'build', '--dest', 'out', '--user', 'somebody', '--no-wheels', '--model', bundle]
    [(status, said)] = ich(args, before='clock_goes_back')
    assert status == DONE, said


# Tables

ROWS = '\n'.join(f'1.2.3.1.{i + 1}_{s},{int(i == 2)}' for i in range(6) for s in SUBTYPES)
TABLES = {
    'as it should be': (DONE, f'ID,Label\n{ROWS}\n'), 'byte order mark': (DONE, f'\ufeffID,Label\n{ROWS}\n'),
    'CRLF': (DONE, f'ID,Label\n{ROWS}\n'.replace('\n', '\r\n')), 'gzip': (DONE, gzip.compress(f'ID,Label\n{ROWS}\n'.encode(), mtime=0)),
    'equal duplicates': (DONE, f'ID,Label\n{ROWS}\n{ROWS}\n'),
    'another order': (DONE, 'ID,Label\n' + '\n'.join(sorted(ROWS.split(), reverse=True)) + '\n'),
    'other columns': (NOT, f'id;label\n{ROWS}\n'), 'no labels': (NOT, 'ID\n' + ROWS.replace(',0', '').replace(',1', '') + '\n'),
    'NaN': (NOT, f'ID,Label\n{ROWS}\n'.replace('1.2.3.1.3_any,1', '1.2.3.1.3_any,')),
    'conflicting duplicates': (NOT, f'ID,Label\n{ROWS}\n1.2.3.1.3_any,0\n'),
    'a subtype missing': (NOT, 'ID,Label\n' + '\n'.join(o for o in ROWS.split() if 'epidural' not in o) + '\n'),
    'cut': (NOT, f'ID,Label\n{ROWS}'[:-9]), 'empty': (NOT, ''), 'not text': (NOT, bytes(range(256))*4),
    'gzip, cut': (NOT, gzip.compress(f'ID,Label\n{ROWS}\n'.encode())[:60])}


@pytest.fixture(scope='module')
def predictions(tmp_path_factory):
    "Predictions for six slices"
    folder = tmp_path_factory.mktemp('predictions')
    table = pd.DataFrame(dict(image_id=[f'1.2.3.1.{i + 1}' for i in range(6)], study_id='1.2.1', series_id='1.2.1.1', slice_index=range(6)))
    chances = pd.DataFrame(np.linspace(.1, .6, 36).reshape(6, 6).round(4), columns=SUBTYPES)
    pd.concat([table, chances], axis=1).assign(positive=0, status='ok').to_csv(folder/'slices.csv', index=False)
    return folder


@pytest.mark.parametrize('kind', TABLES)
def test_tables_of_truth(ich, tmp_path, predictions, kind):
    "`ich evaluate` reads it, or says in a line what is wrong with which file"
    expected, content = TABLES[kind]
    path = tmp_path/'truth.csv'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    [(status, said)] = ich(['evaluate', predictions, path, '--out', 'out'])
    assert status == expected, said
    if expected == NOT: assert 'truth.csv' in said and not (tmp_path/'out'/'report.html').exists()


@pytest.mark.parametrize('place', ['truth', 'predictions', 'sample'])
@pytest.mark.parametrize('start', ['', 'header'])
def test_ten_gigabytes_on_one_line(ich, tmp_path, predictions, place, start):
    "Refused by name with a gigabyte of address space more than the process has"
    labels = truth(tmp_path/'truth.csv')
    path = tmp_path/'huge.csv'
    with open(path, 'wb') as f:
        if start: f.write(b'image_id,' + ','.join(SUBTYPES).encode() + b'\n')
        f.truncate(10*2**30)
    args = dict(truth=['evaluate', predictions, path, '--out', 'out'], predictions=['evaluate', path, labels, '--out', 'out'],
                sample=['submit', predictions, path, '--out', 'out.csv'])[place]
    [(status, said)] = ich(args, before='little_memory')
    assert status == NOT and 'huge.csv' in said


def test_labels_of_both_stages(tmp_path):
    "Stage 2 is taken where both lie together"
    from rsna_ich.labels import find_labels, find_sample
    for name in 'stage_1_train.csv', 'stage_2_train.csv', 'stage_1_sample_submission.csv', 'stage_2_sample_submission.csv': (tmp_path/name).touch()
    assert find_labels(tmp_path).name == 'stage_2_train.csv' and find_sample(tmp_path).name == 'stage_2_sample_submission.csv'
