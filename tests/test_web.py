"The web application in a browser: sample, worklist, study, scroll, window, three planes, pictures without WebGL2, download, error, two sessions, keyboard"
import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from rsna_ich.apps.sample import sample_path

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
def page(browser, address):
    "A session that has read the sample, its errors collected"
    page = browser.new_page(viewport=dict(width=1100, height=900))
    page.set_default_timeout(ANSWER)
    page.errors = []
    page.on('console', lambda m: page.errors.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    page.goto(address)
    page.get_by_role('button', name='Try the sample').click()
    page.wait_for_selector('text=Studies, most urgent first', timeout=ANSWER)
    return page


def press(page, name):
    "Click the first form's button of this name, until the page that answers it is there"
    with page.expect_navigation(): page.get_by_role('button', name=name, exact=True).first.click()


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


@pytest.mark.parametrize('query', ['', '?png=1'], ids=['webgl', 'pictures'])
def test_a_drag_changes_the_window(page, address, query):
    viewer = open_study(page, address, query)
    drag(page, (.5, .5), (.7, .4))
    centre, width = map(int, viewer.get_attribute('data-window').split('/'))
    assert centre > 40 and width > 80


def drag(page, start, end):
    "From one place in the viewer to another, each as shares of its width and height"
    page.set_viewport_size(dict(width=1100, height=1300))  # the whole viewer is to be seen, for a mouse reaches nothing else
    box = page.locator('.stage').bounding_box()
    points = [(box['x'] + x*box['width'], box['y'] + y*box['height']) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=5)
    page.mouse.up()


def test_a_distance_is_in_mm(page, address):
    "The picture fills the viewer, so what lies between two points follows from the header: pixels times their size"
    open_study(page, address)
    tags = dict(row.inner_text().split('\t') for row in page.locator('tr:has-text("Columns"), tr:has-text("PixelSpacing")').all())
    width = int(tags['Columns'])*float(tags['PixelSpacing'].strip('[]').split(',')[1])
    page.get_by_role('button', name='Distances').click()
    measured = []
    for start, end, share in ((.3, .5), (.7, .5), .4), ((.4, .3), (.7, .7), .5):
        drag(page, start, end)
        measured.append(page.evaluate('viewers[0].nv.document.completedMeasurements.at(-1).distance')/(share*width))
    assert measured == pytest.approx([1, 1], rel=.01)
    assert page.locator('.note').inner_text() == f'The distance is {measured[-1]*share*width:.1f} mm.'  # as a screen reader says it
    page.get_by_role('button', name='Distances').click()
    assert page.locator('[data-mode=measure]').get_attribute('aria-pressed') == 'false'


def upright(path):
    "The first sample study as a zip, as if the gantry had not been tilted: its slices lie straight above each other, 5 mm apart"
    with zipfile.ZipFile(sample_path()) as sample, zipfile.ZipFile(path, 'w') as out:
        for k, name in enumerate(sorted(name for name in sample.namelist() if name.startswith('simulated-1/'))):
            slice = pydicom.dcmread(io.BytesIO(sample.read(name)))
            slice.ImageOrientationPatient, slice.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [*slice.ImagePositionPatient[:2], 5*k]
            slice.PatientID, slice.StudyInstanceUID, slice.SeriesInstanceUID = 'upright', '1.2.3', '1.2.3.4'
            with io.BytesIO() as f:
                slice.save_as(f)
                out.writestr(name, f.getvalue())
    return path


def test_three_planes(page, address, tmp_path):
    "Not of a tilted gantry; of an upright stack in their true proportions, and a click in one plane leads the others there"
    open_study(page, address)
    assert page.get_by_role('button', name='Three planes').count() == 0
    page.goto(address)
    page.locator('input[name=files]').set_input_files(upright(tmp_path/'upright.zip'))
    page.get_by_role('button', name='Read this study').click()
    page.get_by_role('link', name='upright').click(timeout=ANSWER)
    page.wait_for_selector('[data-viewer]', timeout=60_000)
    button, viewer = page.get_by_role('button', name='Three planes'), page.locator('.viewer')
    page.set_viewport_size(dict(width=1100, height=1300))
    button.click()
    assert button.get_attribute('aria-pressed') == 'true'
    planes = page.evaluate('viewers[0].nv.screenSlices.map(s => [s.axCorSag, ...s.leftTopWidthHeight.map(v => v/devicePixelRatio)])')
    assert [plane[0] for plane in planes] == [0, 1, 2]  # axial, coronal, sagittal
    width, height = planes[1][3:]
    tags = dict(row.inner_text().split('\t') for row in page.locator('tr:has-text("Columns"), tr:has-text("PixelSpacing")').all())
    assert width/height == pytest.approx(int(tags['Columns'])*float(tags['PixelSpacing'].strip('[]').split(',')[1])/(24*5), rel=.01)
    page.wait_for_timeout(1000)
    pixels = grey(page)
    for _, left, top, wide, high in planes:
        head = pixels[int(top):int(top + high), int(left):int(left + wide)]
        assert .1 < (head > 40).mean() < .9
    box, (_, left, top, wide, high) = page.locator('.stage').bounding_box(), planes[1]
    page.mouse.click(box['x'] + left + wide/2, box['y'] + top + .25*high)
    assert int(viewer.get_attribute('data-slice')) == pytest.approx(.75*24, abs=1)  # the coronal plane's top is the head's
    page.keyboard.press('ArrowDown')
    assert page.evaluate('Math.floor(24*viewers[0].nv.scene.crosshairPos[2])') == int(viewer.get_attribute('data-slice'))
    button.click()
    assert button.get_attribute('aria-pressed') == 'false' and page.evaluate('viewers[0].nv.screenSlices.length') == 1
    page.goto(address)
    page.get_by_text('Remove uploads').click()
    press(page, 'Remove upright.zip')
    assert page.errors == []


def coloured(page):
    "Share of the viewer's pixels that are not grey"
    page.wait_for_timeout(500)
    pixels = np.asarray(Image.open(io.BytesIO(page.locator('.stage').screenshot())).convert('RGB')).astype(int)
    return (np.ptp(pixels, axis=2) > 30).mean()


@pytest.mark.parametrize('query', ['', '?png=1'], ids=['webgl', 'pictures'])
@pytest.mark.parametrize('name', ['.opacity', '.mask-opacity'], ids=['map', 'outlines'])
def test_overlays_fade(page, address, query, name):
    "At 0 the slice is grey, at 100 it has colours; the other overlay is off meanwhile"
    open_study(page, address, query)
    for slider in '.opacity', '.mask-opacity': page.locator(slider).fill('0')
    assert coloured(page) < .001
    page.locator(name).fill('100')
    assert .005 < coloured(page) < .2
    page.locator(name).fill('0')
    assert coloured(page) < .001


def test_two_studies_side_by_side(page, address):
    page.goto(address)
    both = [link.get_attribute('href')[len('/study/'):] for link in page.locator('a[href^="/study/"]').all()]
    page.goto(f'{address}/side?a={both[0]}&b={both[1]}')
    page.wait_for_selector('.viewer[data-viewer] >> nth=1', timeout=60_000)
    first, second = page.locator('.viewer').all()
    kept = second.get_attribute('data-slice')
    first.locator('.stage').focus()
    page.keyboard.press('End')
    assert first.get_attribute('data-slice') == '23' and second.get_attribute('data-slice') == kept
    boxes = [one.bounding_box() for one in (first, second)]
    assert boxes[0]['y'] == pytest.approx(boxes[1]['y'], abs=120) and boxes[0]['x'] + boxes[0]['width'] <= boxes[1]['x']
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')


def test_outlines_and_results_are_taken_away(page, address, tmp_path):
    "The mask as NIfTI, which says what it is not, and the results as DICOM"
    nibabel = pytest.importorskip('nibabel')
    open_study(page, address)
    with page.expect_download() as found: page.get_by_role('link', name='outlines (NIfTI)').click()
    found.value.save_as(tmp_path/'mask.nii.gz')
    mask = nibabel.load(tmp_path/'mask.nii.gz')
    assert mask.shape[:2] == (512, 512) and b'not a medical device' in bytes(mask.header['descrip'])
    if find_spec('highdicom') is None: return
    assert page.get_by_text('No results as DICOM').count() == 0
    with page.expect_download() as found: page.get_by_role('link', name='results (DICOM)').click()
    assert found.value.suggested_filename == 'not-for-diagnosis-dicom.zip'


CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4).reduce((s, v, i) => s + v*[.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const opacity = e => { let o = 1; for (; e; e = e.parentElement) o *= +getComputedStyle(e).opacity; return o; };
  const low = [];
  for (const e of document.querySelectorAll('main *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length || e.closest('.stage')) continue;
    const style = getComputedStyle(e), back = behind(e), share = opacity(e), ink = parse(style.color).slice(0, 3).map((v, i) => share*v + (1 - share)*back[i]);
    const [a, b] = [light(ink), light(back)], ratio = (Math.max(a, b) + .05)/(Math.min(a, b) + .05), large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) low.push(`${e.tagName} ${e.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return low;
}"""


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast_is_aa(page, address, scheme):
    "Every text on the worklist, with a row that is marked as seen, and on a study: WCAG 2.1, 1.4.3"
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    press(page, 'Seen')
    assert page.locator('tr.seen').count() == 1
    assert page.evaluate(CONTRAST) == []
    press(page, 'Not seen')
    assert page.locator('tr.seen').count() == 0
    open_study(page, address)
    assert page.evaluate(CONTRAST) == []
    page.emulate_media(color_scheme=None)


def bright(page):
    "Share of the viewer's pixels that are not black"
    return (grey(page) > 40).mean()


def grey(page): return np.asarray(Image.open(io.BytesIO(page.locator('.stage').screenshot())).convert('L'))


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
    press(page, 'Remove')


def test_a_dropped_file_is_sent(page, address):
    page.goto(address)
    dropped = page.evaluate_handle('() => { const d = new DataTransfer(); d.items.add(new File(["no picture"], "dropped.txt")); return d; }')
    page.dispatch_event('.drop', 'drop', dict(dataTransfer=dropped))
    page.wait_for_selector('tr:has-text("dropped.txt"):has-text("no DICOM files in it")', timeout=ANSWER)
    press(page, 'Remove')


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


def test_the_viewer_by_keyboard_alone(page, address):
    "Tab leads to everything that can be changed, and each place that has the focus shows it"
    open_study(page, address)
    reached = []
    for _ in range(40):
        page.keyboard.press('Tab')
        reached.append(page.evaluate('(e => e.className || e.dataset.centre || e.textContent)(document.activeElement)'))
        assert page.evaluate('getComputedStyle(document.activeElement).outlineStyle') != 'none', reached[-1]
        if reached[-1] == 'mask-opacity': break
    assert {'stage', 'slice-number', 'opacity', 'mask-opacity'} <= set(reached)
    page.keyboard.press('End')
    assert page.locator('.mask-opacity').input_value() == '100'


def test_a_phones_width(page, address):
    page.set_viewport_size(dict(width=390, height=800))
    page.goto(address)
    edges = page.locator('.cards td').evaluate_all('cells => cells.map(cell => cell.getBoundingClientRect().right)')
    assert max(edges) <= 390, 'nothing of the worklist is beyond the edge'
    titles = page.locator('.cards td').evaluate_all('cells => cells.map(cell => getComputedStyle(cell, "::before").content)')
    assert {'"Patient"', '"Kinds"', '"Mark"'} <= set(titles)
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    open_study(page, address)
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    page.set_viewport_size(dict(width=1100, height=900))
