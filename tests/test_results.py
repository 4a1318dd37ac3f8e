"Results as DICOM: an independent validator finds nothing wrong, and what they say and point to is what was predicted"
import shutil
import subprocess

import numpy as np
import pandas as pd
import pydicom
import pytest

hd = pytest.importorskip('highdicom')

from rsna_ich.apps.results import PROBABILITY, VOLUME, Drawn, drawn_of, valid_uid, write_results
from rsna_ich.core import real_data
from rsna_ich.data.upright import read_series
from rsna_ich.labels import SUBTYPES
from rsna_ich.predict.predictor import load_predictor
from rsna_ich.simulate.competition import write_competition

VALIDATOR = shutil.which('dciodvfy')
BLOOD = slice(30, 40), slice(40, 60)  # rows and columns of the masks that are made up


def boxes(rows):
    "Masks of two kinds on one slice, and their volumes"
    masks = np.zeros((len(rows), *read_series(rows)[0].shape), bool)
    masks[(len(rows)//2, *BLOOD)] = True
    return Drawn(dict(subdural=masks, intraparenchymal=np.roll(masks, 12, 1)), dict(subdural=2.5, intraparenchymal=1.), 'made-up masks')


def simulated(folder): return write_competition(folder/'competition', 2, seed=3, size=96, max_slices=5, test_share=.5, n_jobs=1)/'stage_2_test'


def ge(folder): return real_data('ge_head_study')


def rsna(folder):
    "The files of the one whole series of the competition"
    labels = real_data('rsna_slices', 'labels.csv')
    if labels is None: return None
    table = pd.read_csv(labels)
    return [str(labels.parent/name) for name in table.file[table.patient.eq(table.patient.mode()[0])]]


def errors_of(path):
    "What the validator finds wrong"
    done = subprocess.run([VALIDATOR, '-new', path], capture_output=True, text=True, timeout=60)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith('Error')]


@pytest.fixture(scope='module', params=[simulated, ge, rsna], ids=lambda o: o.__name__)
def written(request, tmp_path_factory):
    "Predictions, the table of what was written, and the objects by kind"
    folder = tmp_path_factory.mktemp('results')
    source = request.param(folder)
    if source is None: pytest.skip('the real data is not on this machine')
    predictor = load_predictor()
    found = predictor.predict(source, n_jobs=1)
    table = write_results(found, predictor, folder/'out', boxes)
    assert sorted(set(table.kind)) == ['picture', 'report', 'segmentation']
    return found, table, {kind: pydicom.dcmread(path) for kind, path in zip(table.kind, table.path)}, folder/'out'


@pytest.mark.skipif(not VALIDATOR, reason='dciodvfy (dicom3tools) is not installed')
def test_the_validator_finds_no_error(written):
    for path in written[1].path: assert errors_of(path) == []


@pytest.mark.skipif(not VALIDATOR, reason='dciodvfy (dicom3tools) is not installed')
def test_nor_in_what_the_outlining_network_drew(written, tmp_path):
    predictor = load_predictor()
    table = write_results(written[0], predictor, tmp_path/'out', drawn_of(written[0].measured()))
    if written[0].slices.positive.eq(1).any(): assert 'segmentation' in set(table.kind)
    for path in table.path[table.path.ne('')]: assert errors_of(path) == []


@pytest.mark.skipif(not VALIDATOR, reason='dciodvfy (dicom3tools) is not installed')
def test_the_validator_sees_what_is_wrong(written, tmp_path):
    broken = pydicom.dcmread(written[1].path.iloc[0])
    del broken.StudyInstanceUID
    broken.save_as(tmp_path/'broken.dcm')
    assert errors_of(tmp_path/'broken.dcm')


def test_the_report_says_what_was_predicted_and_points_to_its_slices(written):
    found, _, objects, out = written
    content = hd.sr.MeasurementReport.from_sequence(hd.sr.ComprehensiveSR.from_dataset(objects['report']).content)
    groups = {group.tracking_identifier: group for group in content.get_image_measurement_groups()}
    table, study = found.table[found.table.status.eq('ok')], found.studies.iloc[0]
    sop = pd.read_csv(out/'references.csv').set_index('image_id').sop_instance_uid
    for kind in SUBTYPES:
        assert groups[kind].get_measurements(name=PROBABILITY)[0].value == pytest.approx(study[kind], rel=1e-4)
        assert groups[kind].source_images[0].referenced_sop_instance_uid == sop[table.image_id[table[kind].idxmax()]]
    assert groups['any'].get_measurements(name=VOLUME) == []
    assert groups['subdural'].get_measurements(name=VOLUME)[0].value == 2.5
    in_slices = {name.partition('any in ')[2] for name in groups} - {''}
    assert in_slices == set(sop[table.image_id[table.positive.eq(1)]])
    segments = content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in segments] == ['intraparenchymal', 'subdural']
    assert {str(group.reference_type.value) for group in segments} == {'121191'}


def test_the_segmentation_lies_on_its_slices(written):
    found, _, objects, out = written
    segmentation = hd.seg.Segmentation.from_dataset(objects['segmentation'])
    rows = found.table[found.table.status.eq('ok')]
    references = pd.read_csv(out/'references.csv').set_index('image_id').loc[rows.image_id]
    assert [o.ReferencedSOPInstanceUID for o in segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence] == [*references.sop_instance_uid]
    masks = segmentation.get_pixels_by_source_instance([*references.sop_instance_uid], ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    subdural = masks[..., [o.SegmentLabel for o in segmentation.SegmentSequence].index('subdural')]
    assert sorted(set(np.argwhere(subdural)[:, 0])) == [len(rows)//2]
    assert subdural[(len(rows)//2, *BLOOD)].all() and subdural.sum() == 10*20


def test_everything_says_what_it_is(written):
    found, table, objects, _ = written
    assert {o.ContentQualification for o in objects.values()} == {'RESEARCH'}
    assert {o.Manufacturer for o in objects.values()} == {'rsna_ich'} and all(o.SeriesDescription.startswith('rsna_ich: ') for o in objects.values())
    assert 'not a medical device' in objects['picture'].ImageComments and objects['picture'].BurnedInAnnotation == 'YES'
    assert {o.StudyInstanceUID for o in objects.values()} == {valid_uid(pydicom.dcmread(found.table.path[0]).StudyInstanceUID)}
    words = ' '.join(element.value for element in objects['report'].iterall() if element.keyword == 'TextValue')
    assert 'not a medical device' in words
    assert all(note in words for note in table.note[table.kind.eq('report')].iloc[0].split('; '))


def test_names_in_other_letters(tmp_path):
    source = simulated(tmp_path)
    for path in source.iterdir():
        header = pydicom.dcmread(path)
        header.SpecificCharacterSet, header.PatientName, header.PatientAge = 'ISO_IR 100', 'Müller^Ann', 'very old'
        header.save_as(path)
    predictor = load_predictor()
    table = write_results(predictor.predict(source, n_jobs=1), predictor, tmp_path/'out')
    for path in table.path: assert pydicom.dcmread(path).PatientName == 'Müller^Ann'
    assert 'PatientAge left empty: its value is malformed' in table.note[table.kind.eq('report')].iloc[0]
