"Adapting to normal scans: what cannot be adapted is said, and painting that is stopped goes on"
import subprocess
import sys
from pathlib import Path

import pytest

from rsna_ich.apps import adapt as adapting
from rsna_ich.apps.adapt import Wish, normal_store, painted_slices
from rsna_ich.simulate.competition import write_competition

ICH = Path(sys.executable).parent/'ich'
WISH = Wish(painted=8)


@pytest.fixture(scope='module')
def hospital(tmp_path_factory):
    "Normal scans of three patients"
    folder = tmp_path_factory.mktemp('hospital')
    write_competition(folder, 4, 71, prevalence=0, size=128, max_slices=3, n_jobs=1)
    return folder/'stage_2_train'


def test_command_names_a_folder_without_slices(tmp_path):
    (tmp_path/'letters').mkdir()
    (tmp_path/'letters'/'a.txt').write_text('a letter')
    done = subprocess.run([ICH, 'adapt', tmp_path/'letters', '--out', tmp_path/'out'], capture_output=True, text=True)
    assert done.returncode == 2 and 'letters' in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path/'out'/'bundle').exists()


def test_painting_that_is_stopped_goes_on(hospital, tmp_path, monkeypatch):
    normal = normal_store(hospital, tmp_path/'work', 96, 1)
    whole = painted_slices(normal, tmp_path/'whole', WISH, 1)
    paint, calls = adapting.read_painted, []

    def stopping(rows, **kwargs):
        calls.append(len(rows))
        if len(calls) == 3: raise KeyboardInterrupt
        return paint(rows, **kwargs)
    stopping.__qualname__ = 'read_painted'
    monkeypatch.setattr(adapting, 'read_painted', stopping)
    with pytest.raises(KeyboardInterrupt): painted_slices(normal, tmp_path/'stopped', WISH, 1)
    calls.append(None)  # so that nothing stops any more
    again = painted_slices(normal, tmp_path/'stopped', WISH, 1)
    assert (tmp_path/'stopped'/'hu.npy').read_bytes() == (tmp_path/'whole'/'hu.npy').read_bytes()
    assert again.labels.equals(whole.labels)
    assert len(calls) - 1 < 3 + normal.slices.image_id.nunique()  # two slices were painted once
