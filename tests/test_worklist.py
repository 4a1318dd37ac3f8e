"The page of results in a browser, at the width of a desk and of a telephone: nothing loads from elsewhere, nothing hangs over the edge"
import pytest

from rsna_ich.core import real_data
from rsna_ich.predict.predictor import load_predictor
from rsna_ich.predict.worklist import write_worklist
from rsna_ich.simulate.competition import write_competition


def simulated(folder):
    "Two studies, a broken file, and a name that is longer than a telephone is wide"
    scans = write_competition(folder/'competition', 2, seed=12, size=96, max_slices=6, prevalence=1, test_share=0, n_jobs=1)/'stage_2_train'
    for k, path in enumerate(sorted(scans.iterdir())): path.rename(scans/f'{"long_name_without_a_gap"*4}_{k}.dcm')
    (scans/f'{"broken"*20}.dcm').write_bytes(b'none')
    return scans


@pytest.fixture(scope='module', params=[simulated, lambda folder: real_data('awkward')], ids=['simulated', 'awkward'])
def pages(request, tmp_path_factory):
    "One page of all studies, an index, and a page behind it"
    folder = tmp_path_factory.mktemp('page')
    source = request.param(folder)
    if source is None: pytest.skip('the real data is not on this machine')
    predictor = load_predictor()
    found = predictor.predict(source, n_jobs=1).measured()
    return [write_worklist(folder/'report.html', found, predictor), write_worklist(folder/'index.html', found, predictor, many=1), folder/'index'/'0001.html']


@pytest.mark.parametrize('width', [1280, 390])
def test_pages_fit_and_load_nothing(browser, pages, width):
    view = browser.new_page(viewport=dict(width=width, height=800))
    odd = []
    view.on('console', lambda m: odd.append(m.text))
    view.on('pageerror', lambda e: odd.append(str(e)))
    view.on('request', lambda r: odd.append(r.url) if not r.url.startswith(('file:', 'data:')) else None)
    for page in pages:
        view.goto(page.as_uri())
        assert view.evaluate('document.documentElement.scrollWidth') <= width, page.name
        assert view.evaluate('[...document.images].every(o => o.complete && o.naturalWidth > 0)')
    assert odd == []


def test_the_index_leads_to_a_study_and_back(browser, pages):
    view = browser.new_page()
    view.goto(pages[1].as_uri())
    with view.expect_navigation(): view.locator('a.card').first.click()
    assert view.locator('section.study').count() == 1 and view.get_by_text('Study 1 of').count() == 1
    with view.expect_navigation(): view.get_by_role('link', name='next').click()
    with view.expect_navigation(): view.get_by_role('link', name='all studies').click()
    assert view.locator('a.card').count() > 1
