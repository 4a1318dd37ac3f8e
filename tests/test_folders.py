"Odd folders as people have them: what check and predict make of them, by the same eyes"
import gzip
import os
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset

from rsna_ich.core import real_data
from rsna_ich.data.dicom import PAIR
from rsna_ich.data.quality import check_folder
from rsna_ich.data.slices import frame_rows, read_slices
from rsna_ich.data.upright import read_series
from rsna_ich.predict.folder import find_slices
from rsna_ich.predict.predictor import Predictor

SIZE = 16


def head(z):
    "HU of a tiny slice that shows which way is up, another one at each height"
    hu = np.full((SIZE, SIZE), -1000, np.int16)
    hu[2:14, 3:13] = 40
    hu[2, 8] = 200 + round(z)
    hu[7, 4] = 75
    return hu


def ct(z, hu=None, **tags):
    "A CT slice at height `z`; tags of None are left out"
    hu = head(z) if hu is None else hu
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = '1.2.840.10008.1.2.1'
    uid = f'1.2.3.{round(z*10) + 10**6}'
    known = dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.2', SOPInstanceUID=uid, Modality='CT', PatientID='P', StudyInstanceUID='1.2',
        SeriesInstanceUID='1.2.3', ImagePositionPatient=[0, 0, z], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1, 1],
        SamplesPerPixel=1, PhotometricInterpretation='MONOCHROME2', Rows=hu.shape[-2], Columns=hu.shape[-1], BitsAllocated=16,
        BitsStored=16, HighBit=15, PixelRepresentation=1, RescaleIntercept=0, RescaleSlope=1, PixelData=hu.astype('<i2').tobytes())
    for keyword, value in (known | tags).items():
        if value is not None: setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def write(datasets, folder, name='{:02}.dcm'):
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, name.format(i)) for i in range(len(datasets))]
    for ds, path in zip(datasets, paths): ds.save_as(path, enforce_file_format=True)
    return paths


def stack(n=6, **tags): return [ct(5*i, **tags) for i in range(n)]
def usable(table): return table[table.status == 'ok']


def test_whatever_lies_there_is_read_or_named(tmp_path):
    folder, elsewhere = tmp_path/'in', tmp_path/'elsewhere'
    paths = write(stack(6), folder)
    for path in paths[3:5]:
        with open(path, 'rb') as f, open(f'{path}.gz', 'wb') as g: g.write(gzip.compress(f.read()))
        os.unlink(path)
    elsewhere.mkdir()
    os.rename(paths[5], elsewhere/'far.dcm')
    (folder/'link').symlink_to(elsewhere)
    (folder/'loop').symlink_to(folder)
    os.mkfifo(folder/'pipe')
    (folder/'notes.txt').write_text('notes')
    with zipfile.ZipFile(folder/'more.zip', 'w') as z: z.write(paths[0], 'a.dcm')
    for table in read_slices(folder), check_folder(folder).slices, find_slices(folder):
        assert usable(table).z_mm.tolist() == [0, 5, 10, 15, 20, 25]
        named = {os.path.basename(p): s for p, s in zip(table.path, table.status) if s != 'ok'}
        assert sorted(named) == ['more.zip', 'pipe']
        assert 'named pipe' in named['pipe'] and 'archive' in named['more.zip']


@pytest.mark.skipif(not hasattr(socket, 'AF_UNIX'), reason='no sockets in folders here')
def test_a_socket_is_named(tmp_path, monkeypatch):
    write(stack(2), tmp_path)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind('s')
        table = read_slices('.')
    assert len(usable(table)) == 2 and 'a socket' in table.status[table.path.str.endswith('s')].iloc[0]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    write(stack(2), tmp_path/'open')
    write(stack(2), tmp_path/'closed')
    real = os.scandir
    def scandir(path):
        if str(path).endswith('closed'): raise PermissionError(13, 'Permission denied')
        return real(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    table = read_slices(tmp_path)
    assert len(usable(table)) == 2
    assert table.status[table.status != 'ok'].tolist() == ['a folder that cannot be read: Permission denied']


@pytest.mark.parametrize('name', ['CT::HEAD', os.fsdecode(b'caf\xe9'), 'a b;c', '\\xe9', 'zeile\nzwei'])
def test_any_name_of_a_folder(tmp_path, name):
    folder = os.path.join(tmp_path, name)
    write(stack(3), folder, f'{name}{{}}.dcm')
    report = check_folder(folder, pixels=True, save=tmp_path/'kept')
    assert len(usable(report.slices)) == 3
    report.save(tmp_path/'report'/'quality.md')
    done = subprocess.run([sys.executable, '-m', 'rsna_ich.cli', 'check', folder], capture_output=True, env=os.environ | {'ICH_QUIET': '1'})
    assert done.returncode == 0, done.stderr


def test_members_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path/'z.zip', 'w') as z, pytest.warns(UserWarning, match='Duplicate name'):
        for path in write(stack(4), tmp_path/'in'): z.write(path, 'IM1')
    table = read_slices(tmp_path/'z.zip')
    assert usable(table).z_mm.tolist() == [0, 5, 10, 15]
    assert len({o[2, 8] for o in read_series(table)}) == 4


def turned(ds, how):
    "The same slice stored another way, as its geometry says"
    hu = np.frombuffer(ds.PixelData, '<i2').reshape(SIZE, SIZE)
    row, column = np.array([1, 0, 0]), np.array([0, 1, 0])
    if 't' in how: hu, row, column = hu.T, column, row
    if 'u' in how: hu, column = hu[::-1], -column
    if 'l' in how: hu, row = hu[:, ::-1], -row
    return ct(float(ds.ImagePositionPatient[2]), np.ascontiguousarray(hu), ImageOrientationPatient=[*map(int, row), *map(int, column)])


@pytest.mark.parametrize('how', ['', 'u', 'l', 'ul', 't', 'tu', 'tl', 'tul'])
def test_slices_are_read_upright(tmp_path, how):
    write([turned(o, how) for o in stack(3)], tmp_path)
    for z, hu in zip((0, 5, 10), read_series(read_slices(tmp_path)), strict=True): assert (hu == head(z)).all()


def test_pixels_are_made_square(tmp_path):
    write([ct(5*i, head(5*i)[::2], PixelSpacing=[2, 1]) for i in range(3)], tmp_path)
    assert [o.shape for o in read_series(read_slices(tmp_path))] == [(SIZE, SIZE)]*3


def test_reformats_and_scouts_are_left_out(tmp_path):
    write(stack(3), tmp_path/'axial')
    write([ct(0, ImageOrientationPatient=[1, 0, 0, 0, 0, -1], SOPInstanceUID='1.9')], tmp_path/'coronal')
    write([ct(0, ImageOrientationPatient=[0, 1, 0, 0, 0, -1], SOPInstanceUID='1.8')], tmp_path/'sagittal')
    write([ct(0, SeriesDescription='Topogram 0.6', SOPInstanceUID='1.7')], tmp_path/'scout')
    table = read_slices(tmp_path)
    assert len(usable(table)) == 3
    reasons = sorted(o.split(' (')[0].split(',')[0] for o in table.status if o != 'ok')
    assert reasons == ['a coronal reformat', 'a sagittal reformat', 'a scout by its series description']


def test_what_a_series_is(tmp_path):
    write(stack(4, ConvolutionKernel='H30s'), tmp_path/'soft')
    write([ct(5*i, ConvolutionKernel='H60s', SOPInstanceUID=f'1.5.{i}') for i in range(4)], tmp_path/'bone')
    write([ct(5*i, PatientID='Q', SOPInstanceUID=f'1.6.{i}') for i in range(4)], tmp_path/'other patient')
    write([ct(5*i, StudyInstanceUID='1.9', SeriesInstanceUID=f'1.7.{i}', SeriesNumber=2, SOPInstanceUID=f'1.7.{i}.1') for i in range(4)], tmp_path/'torn')
    table = usable(read_slices(tmp_path))
    sizes = table.groupby('series_id').size()
    assert len(table) == 16 and sizes.tolist() == [4]*4
    assert table.groupby('study_id').patient_id.nunique().eq(1).all() and table.study_id.nunique() == 3


def test_a_study_whose_identifier_differs_in_every_slice(tmp_path):
    def of(patient, **tags): return [ct(5*i, PatientID=patient, StudyInstanceUID=f'1.{patient}.{i}', SeriesInstanceUID=f'1.{patient}.{i}',
                                        SOPInstanceUID=f'1.{patient}.{i}.1', **tags) for i in range(9)]
    write(of('4', FrameOfReferenceUID='1.9', SeriesNumber=2), tmp_path/'framed')
    write(of('5'), tmp_path/'nothing but the patient') # as in the competition's headers, which have neither frame nor number
    write(of('6', FrameOfReferenceUID='1.9', SeriesNumber=2), tmp_path/'a frame of another patient')
    table = read_slices(tmp_path)
    assert usable(table).groupby('patient_id')[['study_id', 'series_id']].nunique().eq(1).all(axis=None)
    assert table.study_id.nunique() == 3 and table.groupby('study_id').patient_id.nunique().eq(1).all()
    assert table.quirks.str.contains('study id of each slice: 9 put together').all()
    assert table.slice_index.tolist() == [*range(9)]*3


def test_sixteen_bits_that_lost_their_sign(tmp_path):
    def lost(z): return ct(z, head(z).view('u2'), PixelRepresentation=0, PixelData=head(z).astype('<i2').tobytes())
    write([lost(5*i) for i in range(3)], tmp_path)
    table = read_slices(tmp_path)
    assert table.quirks.str.contains('unsigned intercept 0').all()
    for z, hu in zip((0, 5, 10), read_series(table), strict=True): assert (hu == head(z)).all()


def test_one_instance_in_two_codings(tmp_path):
    write(stack(3), tmp_path/'plain')
    packed = stack(3)
    for ds in packed: ds.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    write(packed, tmp_path/'packed')
    table = read_slices(tmp_path)
    assert len(usable(table)) == 3 and table.status.str.contains('in another coding').sum() == 3


def test_frames_by_position(tmp_path):
    def item(**values):
        ds = Dataset()
        for k, v in values.items(): setattr(ds, k, v)
        return ds
    heights = [10, 0, 15, 5]
    own = [item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, z])]) for z in heights]
    shared = item(PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])], PixelMeasuresSequence=[item(PixelSpacing=[1, 1])])
    ds = ct(0, np.stack([head(z) for z in heights]), NumberOfFrames=4, SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=own, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None)
    write([ds], tmp_path)
    rows = frame_rows(read_slices(tmp_path))
    assert rows.z_mm.tolist() == [0, 5, 10, 15]
    assert [o[2, 8] for o in read_series(rows)] == [200, 205, 210, 215]


def test_predictions_inside_their_own_input_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    for k in range(3): write([ct(5*i, StudyInstanceUID=f'1.{k}', SeriesInstanceUID=f'1.{k}.1', SOPInstanceUID=f'1.{k}.1.{i}') for i in range(3)], tmp_path/f'{k}')
    predictor, looked_at, rows_of = Predictor(), [], Predictor.predict_rows
    def look(self, rows):
        looked_at.append(rows.study_id.iloc[0])
        if looked_at == ['1.0', '1.1', '1.2']: raise KeyboardInterrupt
        return rows_of(self, rows)
    monkeypatch.setattr(Predictor, 'predict_rows', look)
    with pytest.raises(KeyboardInterrupt): predictor.predict(tmp_path, 1, keep=tmp_path/'results'/'.unfinished')
    assert list((tmp_path/'results'/'.unfinished').rglob('finished.jsonl'))
    found = predictor.predict(tmp_path, 1, keep=tmp_path/'results'/'.unfinished')
    assert looked_at == ['1.0', '1.1', '1.2', '1.2'] # only what was not finished
    assert len(found.slices) == 9 and not len(found.left_out)


def test_a_report_is_of_the_files_as_they_are(tmp_path):
    write(stack(3, Modality='MR'), tmp_path/'in')
    assert check_folder(tmp_path/'in', save=tmp_path/'out').left_out.shape[0] == 3
    write(stack(3, Modality='CT'), tmp_path/'in')
    assert check_folder(tmp_path/'in', save=tmp_path/'out').clean


def test_identifiers_are_text(tmp_path):
    write([ct(5*i, PatientID=name, StudyInstanceUID=f'1.{i}', SOPInstanceUID=f'1.{10*i or 1}') for i, name in enumerate(['00123', 'NA', '1e5'])], tmp_path/'in')
    table = read_slices(tmp_path/'in', save=tmp_path/'t.parquet')
    again = pd.read_parquet(tmp_path/'t.parquet')
    for t in table, again: assert set(t.patient_id) == {'00123', 'NA', '1e5'} and {'1.1', '1.10', '1.20'} == set(t.image_id)


def in_frames(slices, **tags):
    "Slices as one enhanced file"
    ds = ct(0, np.stack(slices), SOPClassUID='1.2.840.10008.5.1.4.1.1.2.1', NumberOfFrames=len(slices), ImagePositionPatient=None, **tags)
    ds.PerFrameFunctionalGroupsSequence = []
    for i in range(len(slices)):
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 5*i]
        frame.PlanePositionSequence = [place]
        ds.PerFrameFunctionalGroupsSequence.append(frame)
    return ds


def test_check_and_predict_name_the_same_files(tmp_path):
    folder = tmp_path/'in'
    blank = np.full((SIZE, SIZE), -1000, np.int16)
    write(stack(4), folder)
    write([in_frames([head(0), blank, head(10)], SOPInstanceUID='1.2.9.1', SeriesInstanceUID='1.2.9'),
           in_frames([blank, blank], SOPInstanceUID='1.2.9.2', SeriesInstanceUID='1.2.8'),
           ct(0, SOPInstanceUID='1.2.9.3', SeriesInstanceUID='1.2.7', RescaleType='US')], folder, 'odd{}.dcm')
    (folder/'cut.dcm').write_bytes((folder/'00.dcm').read_bytes()[:-40])
    for name in 'hostile', 'awkward':
        for path in real_data(name).iterdir() if real_data(name) else []: (folder/path.name).symlink_to(path)
    checked, found = check_folder(folder), Predictor().predict(folder, 1)
    named = dict(zip(found.left_out.path, found.left_out.reason))
    assert named == dict(zip(checked.left_out.path, checked.left_out.status))
    made = {os.path.basename(path): why for path, why in named.items() if os.path.basename(path)[:3] in ('odd', 'cut')}
    assert made['odd0.dcm'].endswith('no picture (frame 2 of 3)') and made['odd1.dcm'].endswith('no picture')
    assert made['odd2.dcm'] == 'its values are not HU by its own header (RescaleType US)' and 'truncated' in made['cut.dcm']
    assert found.lost.files == len(named) and found.lost.in_part == 1 and found.lost.slices == len(named) + 1
    assert f'{len(named)} files left out, 1 of them in part ({len(named) + 1} slices)' in repr(found)


def test_an_analyze_pair_is_refused_by_name(tmp_path):
    nibabel = pytest.importorskip('nibabel')
    folder = tmp_path/'in'
    write(stack(2), folder)
    volume = np.stack([head(0), head(5)], -1)
    nibabel.save(nibabel.AnalyzeImage(volume, np.eye(4)), folder/'old.img')
    nibabel.save(nibabel.Nifti1Pair(volume, np.eye(4)), folder/'pair.img')
    checked, found = check_folder(folder), Predictor().predict(folder, 1)
    named = {os.path.basename(path): why for path, why in zip(found.left_out.path, found.left_out.reason)}
    assert sorted(named) == ['old.hdr', 'old.img', 'pair.hdr', 'pair.img'] and set(named.values()) == {PAIR}
    assert dict(zip(checked.left_out.path, checked.left_out.status)) == dict(zip(found.left_out.path, found.left_out.reason))
    assert found.slices.status.eq('ok').sum() == 2
