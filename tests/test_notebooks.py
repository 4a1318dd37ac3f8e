"Every notebook runs from top to bottom: each is one test"
import io
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(nbglob(NBS, as_path=True))
LIBRARIES = ['nbdev.test', 'nbdev.showdoc', 'pandas', 'matplotlib.pyplot', 'pydicom', 'scipy.ndimage', 'skimage.transform', 'torch', 'timm', 'fastai.vision.all']


def run_notebook(path, scratch):
    "Whether the notebook at `path` passed, its seconds, and what went wrong; for a process of its own, with temporary files in `scratch`"
    import nbdev.test
    os.environ['TMPDIR'] = tempfile.tempdir = str(scratch)  # Inherited by what the notebook starts
    sys.__stderr__ = errors = io.StringIO()  # Where `test_nb` writes the traceback
    config = get_config(ROOT)
    options = dict(skip_flags=config.tst_flags.split(), basepath=ROOT, cell_timeout=config.cell_timeout)
    passed, seconds = nbdev.test.test_nb(path, **options)
    if 'joblib.externals.loky' in sys.modules:  # Its idle workers would keep this process from ending for five minutes
        from joblib.externals.loky import get_reusable_executor
        get_reusable_executor().shutdown(wait=True, kill_workers=True)
    return passed, seconds, errors.getvalue()


@cache
def fresh():
    """What starts fresh processes: forked from one that has imported `LIBRARIES` and nothing of ours, which saves each notebook some seconds.
    Spawned where there is no fork, or a GPU, which a forked process could not use: fastai opens it on import"""
    import torch
    if 'forkserver' not in multiprocessing.get_all_start_methods() or torch.cuda.is_available(): return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(LIBRARIES)
    return context


def run_alone(path, scratch):
    "The same in a fresh process: no notebook sees another's memory, threads or modules of ours"
    with ProcessPoolExecutor(1, mp_context=fresh()) as pool: return pool.submit(run_notebook, path, scratch).result()


@pytest.fixture
def own_scratch():
    "A folder for temporary files that goes with the test: notebooks leave what they made lying for the reader to look at"
    with tempfile.TemporaryDirectory(prefix='nb-', ignore_cleanup_errors=True) as folder: yield Path(folder)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(NBS).as_posix())
def test_notebook(path, own_scratch, record_property):
    passed, seconds, errors = run_alone(path, own_scratch)
    record_property('notebook_seconds', seconds)
    assert passed, f'{path.name}\n{errors}'


def test_there_are_notebooks(): assert [p for p in NOTEBOOKS if p.name == '00_core.ipynb']
