"What the tests share: where the repository is, which notebooks it has, and a closing table of how long each notebook took"
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('OMP_NUM_THREADS', '1')  # `make test` runs two tests at a time
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # A test that needs the network fails here as it would on a machine without one
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
CHROMIUM_ARGS = ['--no-sandbox', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist']  # WebGL2 without a GPU


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='module')
def browser():
    "The system's Chromium"
    if not CHROMIUM: pytest.skip('no Chromium on this machine')
    api = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed')
    with api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


def pytest_terminal_summary(terminalreporter):
    "Seconds per notebook, slowest first"
    reports = [r for status in ('passed', 'failed') for r in terminalreporter.stats.get(status, [])]
    properties = {r.nodeid: dict(getattr(r, 'user_properties', [])) for r in reports}
    times = [(found['notebook_seconds'], name) for name, found in properties.items() if 'notebook_seconds' in found]
    if not times: return
    terminalreporter.section('seconds per notebook')
    for seconds, nodeid in sorted(times, reverse=True): terminalreporter.write_line(f'{seconds:7.1f}  {nodeid}')
