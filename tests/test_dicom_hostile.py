"""Hostile DICOM files: whatever is in them, `read_hu` gives Hounsfield units or a `SliceError`, and stays silent"""
import io, random, warnings

import numpy as np, pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from rsna_ich.core import real_data
from rsna_ich.data.dicom import HU_FLOOR, SliceError, header_reason, quirks_of, read_header, read_hu

SIZE = 48


def drawn(syntax=ExplicitVRLittleEndian, **kwargs):
    "The bytes of a small CT slice"
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax in (RLELossless,) else syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
    ds.Modality, ds.PhotometricInterpretation, ds.SamplesPerPixel = 'CT', 'MONOCHROME2', 1
    ds.ImageType, ds.WindowCenter, ds.WindowWidth = ['ORIGINAL', 'PRIMARY', 'AXIAL'], [40, 600], [80, 2800]
    ds.Rows = ds.Columns = SIZE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.PixelPaddingValue = 1, -1024, -2000
    ds.PixelData = np.random.default_rng(0).integers(0, 2500, (SIZE, SIZE), dtype=np.int16).tobytes()
    if syntax == RLELossless: ds.compress(RLELossless)
    for k,v in kwargs.items(): setattr(ds, k, v)
    f = io.BytesIO()
    ds.save_as(f, enforce_file_format=True)
    return f.getvalue()


def survives(data, name='hostile.dcm'):
    "The HU of `data` or None; anything but a `SliceError` that names the file, or a warning that gets out, is a failure"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try:
            header = read_header(data, name)
            assert isinstance(quirks_of(header), list)
            reason = header_reason(header)
            assert reason is None or isinstance(reason, str)
        except SliceError as e: assert e.path == name and e.reason
        try: hu = read_hu(data, name)
        except SliceError as e:
            assert e.path == name and e.reason and '\n' not in e.reason
            return None
    assert hu.dtype == np.int16 and hu.ndim in (2, 3) and hu.min() >= HU_FLOOR
    return hu


FILES = {'explicit': drawn(), 'implicit': drawn(ImplicitVRLittleEndian), 'rle': drawn(RLELossless)}


@pytest.mark.parametrize('kind', FILES)
def test_truncated_anywhere(kind):
    whole = survives(FILES[kind])
    assert whole is not None
    rng, n = random.Random(1), len(FILES[kind])
    for end in {0, 1, 127, 131, 132, *(rng.randrange(n) for _ in range(120)), *range(n - 12, n)}:
        hu = survives(FILES[kind][:end])
        assert hu is None or (hu == whole).all(), f'cut at {end} of {n} gave other pixels'


@pytest.mark.parametrize('kind', FILES)
def test_flipped_bytes(kind):
    rng, data = random.Random(2), FILES[kind]
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 4, 30])): damaged[rng.randrange(128, 1000)] = rng.randrange(256)
        survives(bytes(damaged))


def test_any_bytes():
    rng = random.Random(3)
    for n in 0, 1, 131, 140, 500, 5000:
        junk = rng.randbytes(n)
        for data in junk, bytes(128) + b'DICM' + junk, b'\x08\0' + junk, FILES['explicit'][:300] + junk: survives(data)


def test_truncated_says_how_many_bytes():
    want = 2*SIZE*SIZE
    with pytest.raises(SliceError, match=f'hostile.dcm: truncated: {want - 100:,} of {want:,} bytes of pixels'):
        read_hu(FILES['explicit'][:-100], 'hostile.dcm')
    with pytest.raises(SliceError, match='hostile.dcm: truncated: the file ends after [1-9][0-9,]* bytes of compressed pixels'):
        read_hu(FILES['rle'][:-100], 'hostile.dcm')


@pytest.mark.parametrize('attributes,reason', [
    (dict(Rows=65535, Columns=65535, NumberOfFrames=2**31 - 1), 'more than'),
    (dict(Rows=0), 'no pixels'),
    (dict(BitsAllocated=64), 'truncated'),
    (dict(BitsAllocated=24), 'truncated'),
    (dict(BitsAllocated=1), 'BitsAllocated'),
    (dict(SamplesPerPixel=3), 'colour'),
    (dict(RescaleSlope=0), 'RescaleSlope'),
    (dict(RescaleSlope='1e400'), 'RescaleSlope'),
    (dict(Modality='OT'), 'not CT'),
    (dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.7'), 'not a CT image: its SOP class is Secondary Capture'),
    (dict(RescaleType='ED'), 'not in Hounsfield units: RescaleType is ED'),
    (dict(RescaleIntercept='40000'), 'not in Hounsfield units'),
    (dict(RescaleIntercept=None), 'neither intercept nor air'),
    (dict(RescaleIntercept='-1e30'), 'every pixel is padding or darker than air'),
    (dict(RescaleSlope='-1'), 'every pixel is padding or darker than air'),
    (dict(NumberOfFrames=20_000, Rows=1, Columns=1), '20,000 frames are more than'),
])
def test_header_that_lies(attributes, reason):
    with warnings.catch_warnings(action='ignore'): data = drawn(**attributes)
    with pytest.raises(SliceError, match=reason): read_hu(data)


@pytest.mark.parametrize('attributes', [
    dict(BitsStored=0), dict(BitsStored=99), dict(BitsStored=5), dict(HighBit=3), dict(NumberOfFrames=0), dict(NumberOfFrames=-3),
    dict(PixelPaddingValue=-32768), dict(ImageType=None), dict(PhotometricInterpretation=''), dict(WindowCenter=None),
    dict(RescaleSlope=None), dict(RescaleType='US'), dict(Modality=None), dict(PixelPaddingRangeLimit=2000),
])
def test_odd_header_is_read(attributes):
    assert survives(drawn(**attributes)) is not None


def test_not_files(tmp_path):
    for path in tmp_path, tmp_path/'none.dcm':
        with pytest.raises(SliceError, match=path.name): read_hu(path)
        with pytest.raises(SliceError, match=path.name): read_header(path)


def test_nested_sequences():
    "A sequence in a sequence, many times, none of them closed"
    level = b'\x00\x52\x29\x92SQ\0\0\xff\xff\xff\xff' + b'\xfe\xff\x00\xe0\xff\xff\xff\xff'
    start = FILES['explicit'].index(b'\xe0\x7f\x10\x00')
    for depth in 3, 2000: assert survives(FILES['explicit'][:start] + level*depth) is None


@pytest.mark.parametrize('name', ['693_J2KR.dcm', 'CT2_JPLL', 'CT2_JLSL', 'CT2_RLE'])
def test_truncated_codestream_is_never_filled_in(name):
    path = real_data('awkward', name)
    if path is None: pytest.skip('the real data (awkward/) are not on this machine')
    ds, whole = dcmread(path), read_hu(path)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    for end in 40, len(frame)//2, len(frame)*9//10:
        ds.PixelData = encapsulate([frame[:end]])
        f = io.BytesIO()
        ds.save_as(f, enforce_file_format=True)
        hu = survives(f.getvalue())
        assert hu is None or (hu == whole).all()
