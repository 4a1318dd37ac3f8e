"""Memory and time of `ich` commands against the number of slices

`python tests/growth.py check store --slices 100 1000 10000 --keep growth.json` makes studies of 30 small slices each, runs each
command once on each number, in a process of its own, and keeps its highest memory and its processor time."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from mutator import as_bytes, slice_of

from rsna_ich.core import atomic_path
from rsna_ich.labels import SUBTYPES

STUDY = 30  # Slices
COMMANDS = {
    'check': ['check', 'in', '--out', 'out', '--jobs', '1'],
    'check --pixels': ['check', 'in', '--out', 'out', '--pixels', '--jobs', '1'],
    'store': ['store', 'in', 'out', '--size', '48', '--jobs', '1'],
    'predict --archive': ['predict', 'in', '--out', 'out', '--archive', '--jobs', '1'],
    'evaluate': ['evaluate', 'slices.csv', 'truth.csv', '--out', 'out']}


def names(i):
    "Image, study and place in it of slice `i`; each text as long as that of any other slice"
    study, place = divmod(i, STUDY)
    return f'1.2.3.{10**8 + i}', f'1.2.{10**8 + study}', f'{10000 + 5*place}.5' # no part of an identifier


def write_slices(folder, n, flat=False):
    "`n` slices, all of them other bytes, in a folder for each study or all in one"
    image, study, place = names(0)
    ds = slice_of(ImagePositionPatient=[0, 0, place], StudyInstanceUID=study, SeriesInstanceUID=f'{study}.1', PatientID=study, BodyPartExamined='HEAD')
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = image
    template = as_bytes(ds)
    for i in range(n):
        data = template
        for old, new in zip((image, study, place), names(i)): data = data.replace(old.encode(), new.encode())
        path = folder/f'{i:06}.dcm' if flat else folder/f'{i//STUDY:06}'/f'{i%STUDY:02}.dcm'
        if i % STUDY == 0: path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_tables(folder, n):
    "Predictions and truth of `n` slices"
    images, studies, _ = zip(*map(names, range(n)))
    rng = np.random.default_rng(0)
    table = pd.DataFrame(dict(image_id=images, study_id=studies, series_id=studies, slice_index=[i % STUDY for i in range(n)], status='ok', positive=0))
    table[SUBTYPES] = rng.uniform(.01, .99, (n, 6)).round(4)
    table.to_csv(folder/'slices.csv', index=False)
    labels = pd.DataFrame(rng.integers(0, 2, (n, 6)), columns=SUBTYPES)
    labels['any'] = labels[SUBTYPES[1:]].max(axis=1)
    labels.insert(0, 'image_id', images)
    labels.to_csv(folder/'truth.csv', index=False)


PROGRAM = """
import resource, sys
from rsna_ich.cli import app
try: app(sys.argv[1:], prog_name='ich', standalone_mode=False)
except SystemExit as e: assert e.code in (0, None), e.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss*1024, used.ru_utime + used.ru_stime)"""


def measured(command, folder):
    "MB at most and seconds of the processor of one command"
    env = os.environ | dict(ICH_QUIET='1', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    args = [sys.executable, '-W', 'ignore', '-c', PROGRAM, *COMMANDS[command]]
    done = subprocess.run(args, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:] + done.stdout[-300:]
    shutil.rmtree(folder/'out')
    memory, seconds = map(float, done.stdout.splitlines()[-1].split())
    return dict(memory=round(memory/2**20, 1), seconds=round(seconds, 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('commands', nargs='+', choices=COMMANDS)
    parser.add_argument('--slices', type=int, nargs='+', default=[100, 1000, 10_000])
    parser.add_argument('--flat', action='store_true', help='all slices in one folder')
    parser.add_argument('--keep', help='JSON to which the measures are added')
    args = parser.parse_args()
    found = json.loads(Path(args.keep).read_text()) if args.keep and Path(args.keep).exists() else []
    for n in args.slices:
        with tempfile.TemporaryDirectory() as d:
            write_slices(Path(d)/'in', n, args.flat)
            write_tables(Path(d), n)
            for command in args.commands:
                found = [o for o in found if (o['command'], o['slices']) != (command, n)]
                found.append(dict(command=command, slices=n) | measured(command, Path(d)))
                print(json.dumps(found[-1]), flush=True)
                if not args.keep: continue
                with atomic_path(args.keep) as p: Path(p).write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__': main()
