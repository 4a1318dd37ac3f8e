"Every notebook runs from top to bottom: each is one test"
import io
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(nbglob(NBS, as_path=True))


def run_notebook(path):
    "Whether the notebook at `path` passed, its seconds, and what went wrong; for a process of its own"
    import nbdev.test
    sys.__stderr__ = errors = io.StringIO()  # Where `test_nb` writes the traceback
    config = get_config(ROOT)
    options = dict(skip_flags=config.tst_flags.split(), basepath=ROOT, cell_timeout=config.cell_timeout)
    passed, seconds = nbdev.test.test_nb(path, **options)
    if 'joblib.externals.loky' in sys.modules:  # Its idle workers would keep this process from ending for five minutes
        from joblib.externals.loky import get_reusable_executor
        get_reusable_executor().shutdown(wait=True, kill_workers=True)
    return passed, seconds, errors.getvalue()


def run_alone(path):
    "The same in a fresh process, spawned: no notebook sees another's imports, threads or memory"
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=spawn) as pool: return pool.submit(run_notebook, path).result()


@pytest.fixture
def own_scratch(monkeypatch):
    "A folder for temporary files that goes with the test: notebooks leave what they made lying for the reader to look at"
    with tempfile.TemporaryDirectory(prefix='nb-', ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv('TMPDIR', folder)  # Inherited by the notebook's process and by what it starts
        yield Path(folder)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(NBS).as_posix())
def test_notebook(path, own_scratch, record_property):
    passed, seconds, errors = run_alone(path)
    record_property('notebook_seconds', seconds)
    assert passed, f'{path.name}\n{errors}'


def test_there_are_notebooks(): assert [p for p in NOTEBOOKS if p.name == '00_core.ipynb']
