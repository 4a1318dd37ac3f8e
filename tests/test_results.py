"""Results as DICOM, held against the standard by dciodvfy (Debian's dicom3tools) where it is installed"""
import shutil
import subprocess

import pandas as pd
import pydicom
import pytest

from rsna_ich.core import real_data

pytest.importorskip('highdicom')
STUDIES = 'simulated', 'ge_head_study', 'rsna_slices'


@pytest.fixture(scope='module')
def predictor():
    from rsna_ich.predict.predictor import load_predictor
    return load_predictor()


def slices_of(name, folder):
    "The DICOM files of a study: simulated ones, or real ones that lie beside the checkout"
    if name == 'simulated':
        from rsna_ich.simulate.competition import write_competition
        return write_competition(folder/'competition', 2, seed=3, size=128, max_slices=5, test_share=.5, n_jobs=1)/'stage_2_test'
    if not (real := real_data(name)): pytest.skip(f'{name} is not beside the checkout')
    if name == 'ge_head_study': return real
    labels = pd.read_csv(real/'labels.csv')
    longest = labels.series.value_counts().index[0]
    (folder/'series').mkdir()
    for file in labels.file[labels.series.eq(longest)]: shutil.copy(real/file, folder/'series')
    return folder/'series'


@pytest.fixture(scope='module', params=STUDIES)
def written(request, predictor, tmp_path_factory):
    "A folder of slices, what was found in it, and the table of results"
    from rsna_ich.apps.results import drawn_by, write_results
    from rsna_ich.predict.outline import Segmenter
    folder = tmp_path_factory.mktemp(request.param)
    source = slices_of(request.param, folder)
    found = predictor.predict(source, n_jobs=1)
    return source, found, write_results(found, predictor, folder/'results', drawn_by(Segmenter()))


def test_results_point_to_slices_that_exist(written):
    source, found, results = written
    kinds = set(results.kind[results.path.ne('')])
    assert {'report', 'picture'} <= kinds
    if found.slices.positive.eq(1).any(): assert 'segmentation' in set(results.kind)
    for path in results.path[results.path.ne('')]:
        result = pydicom.dcmread(path)
        assert result.ContentQualification == 'RESEARCH' and result.SeriesDescription.startswith('rsna_ich: ')
    references = pd.read_csv(next(p for p in results.path if p).rsplit('/', 2)[0] + '/references.csv')
    picture = pydicom.dcmread(results.path[results.kind.eq('picture') & results.path.ne('')].iloc[0])
    assert picture.SourceImageSequence[0].ReferencedSOPInstanceUID in set(references.sop_instance_uid)


@pytest.mark.skipif(not shutil.which('dciodvfy'), reason='dciodvfy is not installed (Debian: dicom3tools)')
def test_results_follow_the_standard(written):
    *_, results = written
    for path in results.path[results.path.ne('')]:
        done = subprocess.run(['dciodvfy', '-new', path], capture_output=True, text=True, timeout=120)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith('Error')]
        assert not errors, f'{path}: {errors[:5]}'
