"The web application in a browser: sample, worklist, study, scroll, window, pictures without WebGL2, download, error, two sessions, keyboard"
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
ARGS = ['--no-sandbox', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist']
ANSWER = 180_000  # ms for the sample's answer, on a busy machine


@pytest.fixture(scope='module')
def address():
    "Of `ich app` in a process of its own, on a free port"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    server = subprocess.Popen([sys.executable, '-m', 'rsna_ich.cli', 'app', '--port', str(port)], env=os.environ | dict(ICH_QUIET='1'))
    url = f'http://127.0.0.1:{port}'
    for _ in range(240):
        with suppress(OSError):
            if urllib.request.urlopen(f'{url}/health').read() == b'ok': break
        time.sleep(.5)
    yield url
    server.terminate()
    assert server.wait(30) is not None


@pytest.fixture(scope='module')
def browser():
    "The system's Chromium"
    if not CHROMIUM: pytest.skip('no Chromium on this machine')
    api = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed')
    with api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope='module')
def page(browser, address):
    "A session that has read the sample, its errors collected"
    page = browser.new_page(viewport=dict(width=1100, height=900))
    page.errors = []
    page.on('console', lambda m: page.errors.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    page.goto(address)
    page.get_by_role('button', name='Try the sample').click()
    page.wait_for_selector('text=Studies, most urgent first', timeout=ANSWER)
    return page


def open_study(page, address, query=''):
    "The most urgent study of the worklist, its viewer ready"
    page.goto(address)
    page.goto(address + page.locator('a[href^="/study/"]').first.get_attribute('href') + query)
    page.wait_for_selector('[data-viewer]', timeout=60_000)
    return page.locator('.viewer')


def test_worklist_puts_the_urgent_study_first(page, address):
    page.goto(address)
    rows = page.locator('tbody tr').all_inner_texts()
    assert len(rows) == 2 and 'positive' in rows[0] and 'not called' in rows[1]


@pytest.mark.parametrize('query', ['', '?png=1'], ids=['webgl', 'pictures'])
def test_scroll_and_window(page, address, query):
    "By wheel, keys and buttons, with WebGL2 and without"
    viewer = open_study(page, address, query)
    key = int(viewer.get_attribute('data-key'))
    def at(): return int(viewer.get_attribute('data-slice'))
    assert at() == key
    page.locator('.stage').focus()
    page.keyboard.press('ArrowUp')
    assert at() == key + 1
    page.locator('.stage').hover()
    page.mouse.wheel(0, 100)
    page.wait_for_function(f'document.querySelector(".viewer").dataset.slice == {key + 2}')
    page.keyboard.press('2')
    assert viewer.get_attribute('data-window') == '80/200'
    page.locator('.strip button').first.click()
    assert at() == 0
    page.keyboard.press('k')
    assert at() == key
    assert page.errors == []


def bright(page):
    "Share of the viewer's pixels that are not black"
    import io
    import numpy as np
    from PIL import Image
    return (np.asarray(Image.open(io.BytesIO(page.locator('.stage').screenshot())).convert('L')) > 40).mean()


@pytest.mark.parametrize('query', ['', '?png=1'], ids=['webgl', 'pictures'])
def test_the_head_is_seen(page, address, query):
    open_study(page, address, query)
    page.wait_for_timeout(1500)
    assert bright(page) > .15


def test_downloads_say_what_they_are_not(page, address, tmp_path):
    open_study(page, address)
    with page.expect_download() as found: page.get_by_role('link', name='slices (CSV)').click()
    assert 'not a medical device' in Path(found.value.path()).read_text()


def test_a_wrong_file_gets_a_reason(page, address, tmp_path):
    (tmp_path/'notes.txt').write_text('no picture')
    page.goto(address)
    page.locator('input[name=files]').set_input_files(tmp_path/'notes.txt')
    page.get_by_role('button', name='Read this study').click()
    page.wait_for_selector('text=no DICOM files in it', timeout=ANSWER)
    page.get_by_role('button', name='Remove', exact=True).click()


def test_two_sessions_are_apart(page, address, browser):
    page.goto(address)
    link = page.locator('a[href^="/study/"]').first.get_attribute('href')
    other = browser.new_context().new_page()
    assert other.goto(address + link).status == 404
    assert 'belongs to another session' in other.inner_text('main')


def test_keyboard_alone(page, address):
    "From the top of the worklist to a study by Tab and Enter"
    page.goto(address)
    for _ in range(12):
        page.keyboard.press('Tab')
        if page.evaluate('document.activeElement.getAttribute("href") || ""').startswith('/study/'): break
    page.keyboard.press('Enter')
    page.wait_for_selector('[data-viewer]', timeout=60_000)


def test_a_phones_width(page, address):
    page.set_viewport_size(dict(width=390, height=800))
    open_study(page, address)
    assert page.evaluate('document.documentElement.scrollWidth') <= 392
    page.set_viewport_size(dict(width=1100, height=900))
