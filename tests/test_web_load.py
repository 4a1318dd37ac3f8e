"Several uploads at the same moment, good and hostile mixed; `python tests/load_app.py 50` is the same with more"
import pytest

pytest.importorskip('fasthtml', reason='the extra `app` is not installed')
pytest.importorskip('psutil')


def test_good_uploads_are_answered_beside_hostile_ones():
    from load_app import load
    found, used = load(8, seconds=300)
    assert found.right.all(), found.to_string()
    assert len(found) == 8 and found.kind.eq('good').sum() == 4
    assert found.place.max() > 0, 'nobody was shown a place in the queue'
    assert found.shrinks.all(), 'places in the queue only become smaller where each session has one upload'
    assert used['after'] < used['before'] + 150  # MB
