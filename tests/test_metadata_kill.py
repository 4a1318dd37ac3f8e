"A read of headers that is killed midway and started again ends in the same bytes"
import os, subprocess, sys, textwrap, time

import pytest
from pydicom.dataset import Dataset, FileMetaDataset

from rsna_ich.data.slices import load_slices, read_slices

CHUNK,FILES = 10,120

def write_slice(path, z):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = '1.2.840.10008.1.2.1'
    ds.SOPClassUID,ds.SOPInstanceUID,ds.Modality = '1.2.840.10008.5.1.4.1.1.2',f'1.2.3.{z+1}','CT'
    ds.PatientID,ds.StudyInstanceUID,ds.SeriesInstanceUID = 'P1','1.2','1.2.3'
    ds.ImagePositionPatient,ds.ImageOrientationPatient = [0, 0, z],[1, 0, 0, 0, 1, 0]
    ds.SamplesPerPixel,ds.PhotometricInterpretation,ds.Rows,ds.Columns = 1,'MONOCHROME2',4,4
    ds.BitsAllocated,ds.BitsStored,ds.HighBit,ds.PixelRepresentation = 16,16,15,1
    ds.PixelData = b'\0'*32
    ds.save_as(path, enforce_file_format=True)

SLOW = '''
    import sys, time
    from rsna_ich.data import slices as metadata
    read = metadata._read_chunk
    def slow(*args):
        time.sleep(0.15)
        return read(*args)
    metadata._read_chunk = slow
    metadata.read_slices(sys.argv[1], n_jobs=1, save=sys.argv[2], chunk=int(sys.argv[3]))
'''

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'scan').mkdir()
    for z in range(FILES): write_slice(tmp_path/'scan'/f'{(7*z)%FILES:03}.dcm', z)
    return tmp_path/'scan'

def kill_midway(folder, save):
    "Start a read in a process of its own and kill it when a few parts are there"
    command = [sys.executable, '-c', textwrap.dedent(SLOW), folder, save, str(CHUNK)]
    child = subprocess.Popen(command, env={**os.environ, 'ICH_QUIET': '1'})
    try:
        end = time.monotonic()+60
        while time.monotonic() < end and child.poll() is None and len(list_parts(save)) < 3: time.sleep(0.01)
        assert child.poll() is None, 'it ended before it could be killed'
    finally:
        child.kill()
        child.wait()

def list_parts(save): return sorted(save.parent.glob(f'{save.name}.parts/*/?????.parquet'))

def test_killed_and_resumed(folder, tmp_path):
    whole,save = tmp_path/'whole.parquet',tmp_path/'killed.parquet'
    read_slices(folder, n_jobs=1, save=whole, chunk=CHUNK)
    kill_midway(folder, save)
    assert not save.exists()
    parts = list_parts(save)
    assert 3 <= len(parts) < FILES//CHUNK
    table = read_slices(folder, n_jobs=1, save=save, chunk=CHUNK)
    assert save.read_bytes() == whole.read_bytes()
    assert table.slice_index.tolist() == list(range(FILES))
    assert not save.with_name(f'{save.name}.parts').exists()
    assert sorted(o.name for o in tmp_path.iterdir()) == ['killed.parquet', 'scan', 'whole.parquet']

def test_changed_folder_is_read_anew(folder, tmp_path):
    save = tmp_path/'slices.parquet'
    kill_midway(folder, save)
    write_slice(folder/'new.dcm', FILES)
    assert len(read_slices(folder, n_jobs=1, save=save, chunk=CHUNK)) == FILES+1
    assert load_slices(save).slice_index.tolist() == list(range(FILES+1))
