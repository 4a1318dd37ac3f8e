"""What was published in 2025 and 2026 about tools of this field, built again for the doors of this package

Each test's name begins with the number of what it rebuilds; `nbs/benchmarks/04_hostile.ipynb` has the table."""
import gzip
import re
import resource
import struct
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
from mutator import as_bytes, elements, item, looked_up, slice_of, survives
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, MediaStorageDirectoryStorage

from rsna_ich.core import InputError
from rsna_ich.data.dicom import SliceError, read_hu
from rsna_ich.data.slices import read_slices

FEW_MB = 150*2**20


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)


pytestmark = pytest.mark.filterwarnings('ignore:Invalid value for VR')


@pytest.fixture(autouse=True)
def little_memory():
    "No test here may make the process grow by more than some megabytes"
    read_hu(as_bytes(slice_of()))
    before = peak()
    yield
    assert peak() - before < FEW_MB


def refused(data, reason):
    "Header or pixels are refused by name, for this reason; nothing else comes out"
    assert survives(data) is None
    with pytest.raises(SliceError, match=reason): read_hu(data, 'hostile.dcm')


def plain(**tags): return as_bytes(slice_of(**tags))


def element(group, number, vr, value):
    long = vr in (b'UN', b'OB', b'UT')
    return struct.pack('<HH', group, number) + vr + (struct.pack('<HI', 0, len(value)) if long else struct.pack('<H', len(value))) + value


def with_meta(data, extra):
    "The file with more at the end of its file meta information"
    end = next(o[0] for o in elements(data) if data[o[0]:o[0]+2] != b'\x02\0')
    return data[:end] + extra + data[end:]


# Orthanc, CVE-2026-5437 to 5445

@pytest.mark.parametrize('length', [0xffff, 0xfffe, 0x8000])
def test_5437_lengths_beyond_the_meta_header(length):
    "A value of the file meta information that claims more than the file has"
    data = plain()
    start = elements(data)[1][0]
    refused(data[:start] + b'\x02\0\x01\x00OB\0\0' + struct.pack('<I', length*2**16) + data[start:start+200], '.')
    refused(data[:start + 6] + struct.pack('<H', length) + data[start + 8:start + 300], '.')


def test_5437_any_end_of_the_meta_header():
    "Cut at every third of its bytes"
    data = plain()
    end = next(o[0] for o in elements(data) if data[o[0]:o[0]+2] != b'\x02\0')
    for n in range(128, end, 3): assert survives(data[:n]) is None


def test_5438_gzip_bomb_in_a_folder(tmp_path, monkeypatch):
    "Kilobytes that become more than a slice may have: named, and the slice beside it read"
    monkeypatch.setattr('rsna_ich.data.files.MAX_BYTES', 5_000_000)
    (tmp_path/'good.dcm').write_bytes(plain())
    (tmp_path/'bomb.dcm.gz').write_bytes(gzip.compress(bytes(6_000_000), 9))
    table = read_slices(tmp_path)
    assert sorted(table.status.eq('ok')) == [False, True] and table.status.str.contains('unpacks to more than').any()


def forged(path, claimed, content):
    "A zip whose member claims another size than it has"
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('member.dcm', content)
    data = bytearray(path.read_bytes())
    for mark, at in ((b'PK\1\2', 24), (b'PK\3\4', 22)):
        place = data.find(mark) + at
        data[place:place + 4] = struct.pack('<I', claimed)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize('claimed,content', [(2**32 - 2, b'x'*9), (100, bytes(20_000_000))])
def test_5439_sizes_that_a_zip_claims(tmp_path, claimed, content):
    "Four gigabytes claimed for nine bytes, and a hundred bytes for twenty megabytes"
    table = read_slices(forged(tmp_path/'forged.zip', claimed, content))
    assert table.status.ne('ok').all()


@pytest.mark.parametrize('claimed,content', [(2**32 - 2, b'x'*9), (100, bytes(20_000_000))])
def test_5439_the_same_in_an_upload(tmp_path, claimed, content):
    "Refused, or written no further than its claim"
    from rsna_ich.apps.uploads import Limits, unpack_upload
    (tmp_path/'received').mkdir()
    forged(tmp_path/'received'/'forged.zip', claimed, content)
    try: refusals = unpack_upload(tmp_path/'received', tmp_path/'in', Limits(unpacked_bytes=10**6))
    except InputError as e: assert 'unpacks to more than' in e.reason
    else: assert refusals and not [o for o in (tmp_path/'in').rglob('*') if o.is_file()]


@pytest.fixture(scope='module')
def client():
    "A browser of the web application, and its form's token"
    pytest.importorskip('fasthtml', reason='the application is not installed')
    testing = pytest.importorskip('starlette.testclient', reason='no test client')
    from rsna_ich.apps.uploads import Limits
    from rsna_ich.apps.web import make_app
    app = make_app(limits=Limits(upload_bytes=10**6))
    with testing.TestClient(app) as found:
        found.csrf = re.search(r'csrf=([\w-]+)', found.get('/').text)[1]
        yield found
    app.state.desk.close()


def test_5440_content_length_of_gigabytes(client):
    "Nothing is taken by what a request claims: forms refuse it, an upload is counted as it comes"
    claims = {'content-length': str(2**32)}
    assert client.post(f'/sample?csrf={client.csrf}', content=b'x', headers=claims).status_code == 413
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n'
    kind = {'content-type': 'multipart/form-data; boundary=b'}
    assert client.post(f'/upload?csrf={client.csrf}', content=form, headers=claims | kind).status_code == 422  # It broke off
    assert client.post(f'/upload?csrf={client.csrf}', content=form + bytes(2*10**6), headers=kind).status_code == 422  # More than is taken


def test_5441_private_compression():
    "Pixels in a vendor's own compression are not decoded"
    data = slice_of()
    data.add_new((0x07a1, 0x0010), 'LO', 'ELSCINT1')
    data.add_new((0x07a1, 0x1011), 'CS', 'PMSCT_RLE1')
    data.add_new((0x07a1, 0x100a), 'OB', b'\xa5\xff\x5a'*99)
    del data.PixelData
    refused(as_bytes(data), 'no pixels')


@pytest.mark.parametrize('vr', [b'UL', b'US', b'SL'])
def test_5442_dimensions_of_32_bits(vr):
    "Rows and columns whose product overflows, as UL and as several US"
    data = plain()
    for number in 0x10, 0x11:
        start, _, end = next(o for o in elements(data) if data[o[0]:o[0]+4] == struct.pack('<HH', 0x28, number))
        data = data[:start] + element(0x28, number, vr, struct.pack('<I', 0x10001 if vr == b'US' else 0x80000001)) + data[end:]
    assert survives(data) is None or vr == b'US'


def test_5443_palettes():
    "A palette with fewer colours than it says"
    palette = {f'{o}PaletteColorLookupTable{k}': v for o in ('Red', 'Green', 'Blue') for k, v in dict(Descriptor=[0, 0, 16], Data=b'\0\0').items()}
    refused(plain(PhotometricInterpretation='PALETTE COLOR', **palette), 'colour')


@pytest.mark.parametrize('size', [2**16, 2**31, 2**32 - 1])
def test_5444_a_picture_within_the_fragments(size):
    "A portable anymap of absurd size where a codestream should be"
    anymap = f'P7\nWIDTH {size}\nHEIGHT {size}\nDEPTH 1\nMAXVAL 65535\nTUPLTYPE GRAYSCALE\nENDHDR\n'.encode() + bytes(99)
    ds = slice_of(JPEG2000Lossless)
    ds.PixelData = encapsulate([anymap])
    refused(as_bytes(ds), 'cannot be decoded')


def test_5445_values_beyond_a_lookup_table():
    "Stored values above a table's last entry get that entry, as PS3.3 says"
    ds = looked_up()
    table = item(LUTDescriptor=[2, 0, 16], ModalityLUTType='HU')
    table.add_new('LUTData', 'OW', np.array([7, 9], '<u2').tobytes())
    ds.ModalityLUTSequence = [table]
    hu = survives(as_bytes(ds))
    assert hu is None or set(np.unique(hu)) <= {7, 9}


# GDCM

@pytest.mark.parametrize('vr', [b'ZZ', b'\xff\xff', b'OW', b'SQ', b'  '])
def test_3650_unknown_representations_in_the_meta_header(vr):
    "CVE-2026-3650: file meta information with representations that do not exist and lengths of gigabytes"
    for value in struct.pack('<H', 0xfffe), struct.pack('<HI', 0, 0xfffffffe): survives(with_meta(plain(), b'\x02\0\x02\x01' + vr + value + bytes(40)))
    many = b''.join(b'\x02\0' + struct.pack('<H', 0x102 + i) + vr + struct.pack('<H', 8) + bytes(8) for i in range(20_000))
    survives(with_meta(plain(), many))


# pydicom and pynetdicom

@pytest.mark.parametrize('inside', ['folder', 'zip'])
def test_32711_a_directory_that_points_outside(tmp_path, inside):
    "CVE-2026-32711: nobody follows a DICOMDIR; what lies in the folder is read"
    (tmp_path/'outside.dcm').write_bytes(plain(PatientID='outside'))
    folder = tmp_path/'study'
    folder.mkdir()
    (folder/'01.dcm').write_bytes(plain())
    ds = slice_of()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    names = ['..', 'outside.dcm'], ['', 'etc', 'passwd'], ['.', '.', '..', 'outside.dcm']
    ds.DirectoryRecordSequence = [item(DirectoryRecordType='IMAGE', ReferencedFileID=o) for o in names]
    (folder/'DICOMDIR').write_bytes(as_bytes(ds))
    source = folder
    if inside == 'zip':
        source = tmp_path/'study.zip'
        with zipfile.ZipFile(source, 'w') as z:
            for path in folder.iterdir(): z.write(path, path.name)
    table = read_slices(source)
    assert table.patient_id[table.status.eq('ok')].tolist() == ['P'] and 'outside' not in set(table.patient_id)


def test_56445_names_from_a_header(tmp_path):
    "CVE-2026-56445: identifiers that are paths name no file outside the output"
    source, out = tmp_path/'a'/'b'/'in', tmp_path/'a'/'b'/'out'
    source.mkdir(parents=True)
    for i, name in enumerate(['../../escaped', '/escaped', '..\\..\\escaped', 'C:\\escaped', '..', '.']):
        for z in range(3):
            ds = slice_of(PatientID=name, StudyInstanceUID=name, SeriesInstanceUID=name, ImagePositionPatient=[0, 0, 5*z])
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f'{name}{z}'
            (source/f'{i}{z}.dcm').write_bytes(as_bytes(ds))
    before = {*tmp_path.rglob('*')}
    predict = ['predict', source, '--out', out, '--jobs', '1', *(['--dicom'] if find_spec('highdicom') else [])]
    for args in predict, ['store', source, out/'store', '--size', '48', '--jobs', '1']:
        done = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'rsna_ich.cli', *map(str, args)], capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
    outside = {o for o in {*tmp_path.rglob('*')} - before if out not in (o, *o.parents)}
    assert not outside and any(out.rglob('*.csv'))


# Starlette

def test_54121_and_54283_forms_without_end(client):
    "CVE-2025-54121, CVE-2026-54283: fields by the hundred thousand, and forms of another kind"
    kind = {'content-type': 'application/x-www-form-urlencoded'}
    fields = '&'.join(f'a{i}=1' for i in range(50_000))
    assert client.post(f'/sample?csrf={client.csrf}', content=fields, headers=kind).status_code == 413
    assert client.post(f'/upload?csrf={client.csrf}', content=fields, headers=kind).status_code == 422
    parts = b''.join(b'--b\r\nContent-Disposition: form-data; name="a%d"\r\n\r\n1\r\n' % i for i in range(5000)) + b'--b--\r\n'
    many = client.post(f'/upload?csrf={client.csrf}', content=parts, headers={'content-type': 'multipart/form-data; boundary=b'})
    assert many.status_code == 422


def test_62727_ranges_without_end(client):
    "CVE-2025-62727: thousands of ranges are not merged one with the other"
    ranges = ','.join(f'{i}-{i}' for i in range(0, 20_000, 2))
    found = client.get('/static/niivue.umd.js', headers=dict(range=f'bytes={ranges}'))
    assert found.status_code in (200, 400, 416) and 'multipart/byteranges' not in found.headers.get('content-type', '')
