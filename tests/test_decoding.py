"Compressed slices are decoded in a box: from any kind of process, whatever the file, and without a trace afterwards"
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import imagecodecs
import numpy as np
import psutil
import pytest
from joblib import Parallel, delayed
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from rsna_ich.core import real_data
from rsna_ich.data import decoding
from rsna_ich.data.dicom import SliceError, read_hu

STREAMS = {
    JPEG2000Lossless: lambda a: imagecodecs.jpeg2k_encode(a, codecformat='J2K', level=0, reversible=True),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEGLosslessSV1: lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=16)}
hostile = pytest.mark.skipif(real_data('hostile') is None, reason='the real data (hostile/) are not on this machine')


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    "An uncompressed slice: a disc of water with noise, in air"
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
    ds.Modality, ds.PhotometricInterpretation, ds.SamplesPerPixel = 'CT', 'MONOCHROME2', 1
    ds.Rows, ds.Columns = 96, 80
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    y, x = np.mgrid[-1:1:96j, -1:1:80j]
    hu = np.where(np.hypot(x, y) < .8, 30, -1000) + np.random.default_rng(0).normal(0, 5, y.shape)
    ds.PixelData = hu.round().astype(np.int16).tobytes()
    path = tmp_path_factory.mktemp('plain')/'plain.dcm'
    ds.save_as(path, enforce_file_format=True)
    return path


def compressed(plain, syntax, damage=lambda frame: frame, frames=1):
    "The file of the same slice in another transfer syntax"
    ds = dcmread(plain)
    stored = ds.pixel_array
    if syntax == RLELossless: ds.compress(RLELossless)
    else:
        frame = damage(STREAMS[syntax](stored.view(np.uint16)))
        ds.PixelData = encapsulate([frame]*frames)
        ds['PixelData'].VR, ds['PixelData'].is_undefined_length = 'OB', True
        ds.file_meta.TransferSyntaxUID = syntax
        if frames > 1: ds.NumberOfFrames = frames
    f = io.BytesIO()
    ds.save_as(f, enforce_file_format=True)
    return f.getvalue()


@pytest.fixture(scope='module')
def folder(plain, tmp_path_factory):
    "A good compressed slice of each kind, and damaged ones between them"
    folder = tmp_path_factory.mktemp('compressed')
    for i, syntax in enumerate([*STREAMS, RLELossless]):
        (folder/f'{i}_good.dcm').write_bytes(compressed(plain, syntax))
        if syntax in STREAMS: (folder/f'{i}_bad.dcm').write_bytes(compressed(plain, syntax, lambda f: f[:len(f)//2]))
    return folder


def outcome(path):
    "HU, or the error's text"
    try: return read_hu(path)
    except SliceError as e: return str(e)


def check(files, found, want):
    "Good files have the pixels, bad ones an error that names them"
    assert len(found) == len(files) > 6
    for path, one in zip(files, found):
        if 'good' in path.name: assert np.array_equal(one, want), path.name
        else: assert isinstance(one, str) and path.name in one and 'cannot be decoded' in one, one


def test_without_loss_is_without_loss(folder, plain):
    files = sorted(folder.iterdir())
    check(files, [outcome(p) for p in files], read_hu(plain))


def test_several_frames(plain):
    want = read_hu(plain)
    assert np.array_equal(read_hu(compressed(plain, JPEG2000Lossless, frames=3)), np.stack([want]*3))


def test_joblib(folder, plain):
    files = sorted(folder.iterdir())
    for backend in 'loky', 'threading', 'multiprocessing':
        check(files, Parallel(2, backend=backend)(delayed(outcome)(p) for p in files), read_hu(plain))


def outcomes(files, queue): queue.put([outcome(p) for p in files])


@pytest.mark.parametrize('method', [m for m in ('fork', 'spawn') if m in multiprocessing.get_all_start_methods()])
def test_daemonic_processes(folder, plain, method):
    "A `DataLoader`'s workers are daemons, which may start no process through multiprocessing"
    files, context = sorted(folder.iterdir()), multiprocessing.get_context(method)
    read_hu(files[-1])  # the parent has a box of its own, which the child must not speak to
    queue = context.Queue()
    child = context.Process(target=outcomes, args=(files, queue), daemon=True)
    child.start()
    check(files, queue.get(timeout=100), read_hu(plain))
    child.join(10)
    check(files, [outcome(p) for p in files], read_hu(plain))


class Slices:
    "A data set of files"
    def __init__(self, files): self.files = files
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return outcome(self.files[i])


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_dataloader_workers(folder, plain, method):
    from torch.utils.data import DataLoader
    files = sorted(folder.iterdir())
    loader = DataLoader(Slices(files), batch_size=None, num_workers=2, multiprocessing_context=method)
    found = [o if isinstance(o, str) else np.asarray(o) for o in loader]
    check(files, found, read_hu(plain))


def boxes_of(pid):
    "The boxes that a process has started"
    return [p for p in psutil.Process(pid).children() if 'serve_decoder' in ' '.join(p.cmdline())]


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT, None])
def test_boxes_end_with_their_process(folder, how):
    "Killed, interrupted or at its end: nothing is left running"
    wait = 'time.sleep(60)' if how else 'sys.stdin.readline()'
    heard = 'signal.signal(signal.SIGINT, signal.default_int_handler)'  # A shell's background jobs inherit deafness to it
    code = f'import signal, sys, time; {heard}; from rsna_ich.data.dicom import read_hu; read_hu(sys.argv[1]); print(1, flush=True); {wait}'
    command = [sys.executable, '-c', code, folder/'0_good.dcm']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        assert one.stdout.readline() == b'1\n'
        boxes = boxes_of(one.pid)
        assert len(boxes) == 1
        if how: one.send_signal(how)
        one.communicate(b'\n', timeout=30)
    gone, alive = psutil.wait_procs(boxes, timeout=10)
    assert not alive


def test_box_that_dies_twice_is_the_files_fault(plain, monkeypatch):
    "A frame on which every box dies gets an error that says so"
    good = compressed(plain, JPEG2000Lossless)
    monkeypatch.setattr(decoding, '_CODE', decoding._CODE.replace('import', 'import _answer, _ready, _send,').split(';')[0] + '''
import os, signal, sys
_send(sys.stdout.buffer, _ready())
sys.stdin.buffer.read(20)
os.kill(os.getpid(), signal.SIGABRT)
''')
    decoding._stop_all()
    decoding._idle.clear()
    with pytest.raises(SliceError, match=r'x.dcm: cannot be decoded: the JPEG 2000 stream ended the decoder \(SIGABRT\)'):
        read_hu(good, 'x.dcm')
    monkeypatch.undo()
    assert np.array_equal(read_hu(good), read_hu(plain))


def test_decoder_that_cannot_start_says_so(plain, monkeypatch):
    monkeypatch.setattr(decoding, '_CODE', 'import no_such_module')
    decoding._stop_all()
    decoding._idle.clear()
    with pytest.raises(SliceError, match='x.dcm: cannot be decoded: the decoder did not start'):
        read_hu(compressed(plain, JPEG2000Lossless), 'x.dcm')


@hostile
def test_folder_with_lethal_files(tmp_path):
    "`ich predict` names them, and everything else is predicted"
    good = real_data('awkward', 'CT2_J2KR')
    for p in real_data('hostile').iterdir(): shutil.copy(p, tmp_path)
    shutil.copy(good, tmp_path/'good.dcm')
    start = time.monotonic()
    code = 'from rsna_ich.cli import app; app()'
    env = os.environ | dict(ICH_QUIET='1')
    done = subprocess.run([sys.executable, '-c', code, 'predict', tmp_path, '--out', tmp_path/'out'], capture_output=True, text=True, env=env)
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - start < 90
    left = (tmp_path/'out'/'left_out.csv').read_text()
    assert 'jpeg2000_runs_for_minutes.dcm' in left
    assert left.count('jpegls_') == 2
    assert 'good.dcm' not in left
