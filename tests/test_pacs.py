"From and to a PACS: dcmtk sends, Orthanc is asked and gets results, and a listener that is killed loses nothing and does nothing twice"
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pydicom
import pydicom.data
import pytest
import requests

hd = pytest.importorskip('highdicom')
pytest.importorskip('pynetdicom')
pytest.importorskip('dicomweb_client')

from overnight import free_port, overnight, simulated_studies
from rsna_ich.apps.pacs import Bounds, Listener, Peer, fetch_study, send, send_to_peer
from rsna_ich.core import InputError

ORTHANC = shutil.which('Orthanc') or shutil.which('Orthanc', path='/usr/sbin')
PLUGIN = next(Path('/').glob('usr/share/orthanc/plugins/libOrthancDicomWeb.so*'), None)
STORESCU = shutil.which('storescu')
needs_orthanc = pytest.mark.skipif(not ORTHANC or not PLUGIN, reason='Orthanc with its DICOMweb plugin is not installed (apt: orthanc, orthanc-dicomweb)')
QUICK = Bounds(rest_seconds=0, again_seconds=0)


@pytest.fixture(scope='module')
def studies(tmp_path_factory): return simulated_studies(tmp_path_factory.mktemp('studies'), 2)


class Orthanc:
    "An archive with nothing in it, on loopback"

    def __init__(self, folder):
        self.dicom, self.http = free_port(), free_port()
        self.url = f'http://127.0.0.1:{self.http}'
        self.web, self.peer = f'{self.url}/dicom-web', Peer('ORTHANC', '127.0.0.1', self.dicom)
        settings = dict(StorageDirectory=str(folder/'storage'), IndexDirectory=str(folder/'storage'), HttpPort=self.http, DicomPort=self.dicom, DicomAet='ORTHANC',
                        RemoteAccessAllowed=False, AuthenticationEnabled=False, DicomAlwaysAllowStore=True, Plugins=[str(PLUGIN)], DicomWeb=dict(Enable=True, Root='/dicom-web/'))
        (folder/'orthanc.json').write_text(json.dumps(settings))
        self.process = subprocess.Popen([ORTHANC, folder/'orthanc.json'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            assert self.process.poll() is None, 'Orthanc ended'
            try: return requests.get(f'{self.url}/system', timeout=5).raise_for_status()
            except requests.RequestException: time.sleep(.1)
        raise AssertionError('Orthanc does not answer')

    def objects(self, folder):
        "All that it holds, by modality"
        found = {}
        for k, name in enumerate(requests.get(f'{self.url}/instances', timeout=30).json()):
            path = folder/f'{k}.dcm'
            path.write_bytes(requests.get(f'{self.url}/instances/{name}/file', timeout=30).content)
            found.setdefault(pydicom.dcmread(path).Modality, []).append(path)
        return found


@pytest.fixture
def orthanc(tmp_path):
    archive = Orthanc(tmp_path)
    yield archive
    archive.process.kill()
    archive.process.wait()


def load_results(objects, studies):
    "Do the results of Orthanc load again, and point to slices of their studies?"
    slices = {pydicom.dcmread(path).SOPInstanceUID for paths in studies.values() for path in paths}
    reports = [hd.sr.ComprehensiveSR.from_dataset(pydicom.dcmread(path)) for path in objects['SR']]
    for report in reports:
        groups = hd.sr.MeasurementReport.from_sequence(report.content).get_image_measurement_groups()
        assert groups and {source.referenced_sop_instance_uid for group in groups for source in group.source_images} <= slices
    for path in objects.get('SEG', []): assert hd.seg.Segmentation.from_dataset(pydicom.dcmread(path)).number_of_segments
    for path in objects['OT']: assert pydicom.dcmread(path).pixel_array.size
    return sorted(report.StudyInstanceUID for report in reports)


@pytest.mark.skipif(not STORESCU, reason='storescu (dcmtk) is not installed')
def test_dcmtk_sends(studies, tmp_path):
    listener = Listener(tmp_path/'inbox', (), ('127.0.0.1', 0), callers=['STORESCU'], bounds=QUICK).start()
    try:
        for title, status in ('WRONG', 1), ('RSNA_ICH', 0):
            command = [STORESCU, '-aec', title, '127.0.0.1', str(listener.port), *map(str, studies[min(studies)])]
            assert (subprocess.run(command, capture_output=True, timeout=60).returncode != 0) == status
        assert [listener.work(), listener.work()] == [1, 0]
    finally: listener.stop()


@needs_orthanc
@pytest.mark.parametrize('way', ['C-STORE', 'STOW'])
def test_results_go_to_orthanc(studies, orthanc, tmp_path, way):
    destination = orthanc.peer if way == 'C-STORE' else orthanc.web
    listener = Listener(tmp_path/'inbox', [destination], ('127.0.0.1', 0), bounds=QUICK).start()
    try:
        for paths in studies.values(): send_to_peer(paths, Peer('RSNA_ICH', '127.0.0.1', listener.port))
        assert [listener.work(), listener.work()] == [2, 0]
    finally: listener.stop()
    (tmp_path/'got').mkdir()
    assert load_results(orthanc.objects(tmp_path/'got'), studies) == sorted(studies)


@needs_orthanc
def test_a_study_of_orthanc_is_predicted_and_stored_back(studies, orthanc, tmp_path):
    for paths in studies.values(): send(paths, orthanc.peer)
    uid = min(studies)
    out = tmp_path/'out'
    command = [sys.executable, '-m', 'rsna_ich.cli', 'predict', '--from-dicomweb', orthanc.web, '--study', uid, '--send-back', '--no-report', '--out', str(out), '--jobs', '1']
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'stored: ' in done.stdout
    fetched = {pydicom.dcmread(path).SOPInstanceUID for path in (out/'fetched').rglob('*.dcm')}
    assert fetched == {pydicom.dcmread(path).SOPInstanceUID for path in studies[uid]}
    (tmp_path/'got').mkdir()
    assert load_results(orthanc.objects(tmp_path/'got'), studies) == [uid]
    again = sorted(fetch_study(orthanc.web, uid, tmp_path/'again').iterdir())  # its results are not fetched as slices
    assert len(again) == len(fetched)


@needs_orthanc
def test_orthanc_has_no_such_study(orthanc, tmp_path):
    with pytest.raises(InputError, match='no such study'): fetch_study(orthanc.web, '1.2.3', tmp_path/'none')
    slice = pydicom.data.get_testdata_file('CT_small.dcm')
    with pytest.raises(InputError, match='404'): send([slice], f'{orthanc.url}/nowhere')


def test_killed_listeners_lose_nothing_and_do_nothing_twice(tmp_path):
    counted = overnight(tmp_path, n=5, kills=2, most=240)
    assert (counted['answered'], counted['lost'], counted['answered_twice'], counted['kills']) == (5, 0, 0, 2)
