"From and to a PACS: dcmtk sends, Orthanc is asked and gets results, with TLS and without, and a listener that is killed loses nothing and does nothing twice"
import json
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pydicom
import pydicom.data
import pytest
import requests

hd = pytest.importorskip('highdicom')
pytest.importorskip('pynetdicom')
pytest.importorskip('dicomweb_client')

from overnight import free_port, overnight, simulated_studies
from rsna_ich.apps.pacs import Bounds, Listener, Peer, Service, fetch_study, read_destinations, send, send_to_peer
from rsna_ich.apps.results import valid_uid
from rsna_ich.core import InputError, real_data

ORTHANC = shutil.which('Orthanc') or shutil.which('Orthanc', path='/usr/sbin')
PLUGIN = next(Path('/').glob('usr/share/orthanc/plugins/libOrthancDicomWeb.so*'), None)
STORESCU = shutil.which('storescu')
OPENSSL = shutil.which('openssl')
VALIDATOR = shutil.which('dciodvfy')
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
            try:
                self.ask('system')
                return
            except requests.RequestException: time.sleep(.1)
        raise AssertionError('Orthanc does not answer')

    def ask(self, address):
        "What its own interface says"
        answer = requests.get(f'{self.url}/{address}', timeout=30)
        answer.raise_for_status()
        return answer

    def objects(self, folder):
        "All that it holds, by modality"
        folder.mkdir()
        found = {}
        for k, name in enumerate(self.ask('instances').json()):
            path = folder/f'{k}.dcm'
            path.write_bytes(self.ask(f'instances/{name}/file').content)
            found.setdefault(pydicom.dcmread(path).Modality, []).append(path)
        return found


@pytest.fixture
def orthanc(tmp_path):
    archive = Orthanc(tmp_path)
    yield archive
    archive.process.kill()
    archive.process.wait()


@pytest.fixture(scope='module')
def certificates(tmp_path_factory):
    "An authority of our own, and a certificate for 127.0.0.1 that it has signed, in one file with its key"
    if not OPENSSL: pytest.skip('openssl is not installed')
    folder = tmp_path_factory.mktemp('certificates')
    authority, authority_key, server, key = (folder/name for name in ('authority.pem', 'authority.key', 'server.pem', 'server.key'))
    def make(*words): subprocess.run([OPENSSL, 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', *map(str, words)], check=True, capture_output=True, timeout=60)
    make('-subj', '/CN=An authority for tests', '-keyout', authority_key, '-out', authority)
    make('-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1', '-addext', 'basicConstraints=critical,CA:FALSE', '-CA', authority, '-CAkey', authority_key, '-keyout', key, '-out', server)
    with server.open('a') as f: f.write(key.read_text())
    return SimpleNamespace(authority=authority, server=server)


class TlsProxy(socketserver.ThreadingTCPServer):
    "Takes TLS connections and passes their bytes on to a port, as a proxy in front of an archive does"
    daemon_threads = True

    def __init__(self, certificate, port):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)
        self.behind = ('127.0.0.1', port)
        super().__init__(('127.0.0.1', 0), None)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def finish_request(self, request, client_address):
        with suppress(OSError), self.context.wrap_socket(request, server_side=True) as outside, socket.create_connection(self.behind) as inside:
            back = threading.Thread(target=self.pump, args=(inside, outside), daemon=True)
            back.start()
            self.pump(outside, inside)
            back.join(60)

    def pump(self, source, target):
        with suppress(OSError):
            while data := source.recv(2**16): target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def safe_service(certificates):
    "The address of a DICOMweb service without any study, with TLS"
    class Empty(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Type', 'application/dicom+json')
            self.send_header('Content-Length', '2')
            self.end_headers()
            self.wfile.write(b'[]')

        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), Empty)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'https://127.0.0.1:{server.server_port}/dicom-web'
    server.shutdown()


def test_only_the_named_authority_is_believed(safe_service, certificates, tmp_path, monkeypatch):
    for name in 'REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE': monkeypatch.delenv(name, raising=False)
    def ask(service): fetch_study(service, '1.2.3', tmp_path/'none')
    with pytest.raises(InputError, match=r'certificate is not trusted .*--ca'): ask(safe_service)
    with pytest.raises(InputError, match='no such study'): ask(Service(safe_service, str(certificates.authority)))
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(certificates.authority))
    with pytest.raises(InputError, match='no such study'): ask(safe_service)
    other = next(Path(name) for name in (ssl.get_default_verify_paths().cafile, requests.certs.where()) if name and Path(name).is_file())
    with pytest.raises(InputError, match='not trusted'): ask(Service(safe_service, str(other)))  # and not the environment's
    with pytest.raises(InputError, match='not speak TLS|cannot be reached'): ask(Service(safe_service.replace('https', 'http'), str(certificates.authority)))
    with pytest.raises(InputError, match='not trusted .*mismatch|not trusted .*not valid for'): ask(Service(safe_service.replace('127.0.0.1', 'localhost'), str(certificates.authority)))


def load_results(objects, studies):
    "Do the results of Orthanc load again, and point to slices of their studies?"
    slices = {pydicom.dcmread(path).SOPInstanceUID for paths in studies.values() for path in paths}
    reports = [hd.sr.ComprehensiveSR.from_dataset(pydicom.dcmread(path)) for path in objects['SR']]
    for report in reports:
        groups = hd.sr.MeasurementReport.from_sequence(report.content).get_image_measurement_groups()
        pointed = {source.referenced_sop_instance_uid for group in groups for source in group.source_images}
        assert pointed and pointed <= slices
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
    assert load_results(orthanc.objects(tmp_path/'got'), studies) == [uid]
    again = sorted(fetch_study(orthanc.web, uid, tmp_path/'again').iterdir())  # its results are not fetched as slices
    assert len(again) == len(fetched)


@needs_orthanc
def test_a_study_comes_and_goes_by_tls(studies, certificates, orthanc, tmp_path, monkeypatch):
    for name in 'REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE': monkeypatch.delenv(name, raising=False)
    proxy = TlsProxy(certificates.server, orthanc.http)
    try:
        uid, web = min(studies), f'https://127.0.0.1:{proxy.server_address[1]}/dicom-web'
        for destination in read_destinations(web, certificates.authority): send(studies[uid], destination)
        command = [sys.executable, '-m', 'rsna_ich.cli', 'predict', '--from-dicomweb', web, '--study', uid, '--send-back', '--no-report', '--jobs', '1']
        refused = subprocess.run([*command, '--out', tmp_path/'refused'], capture_output=True, text=True, timeout=300)
        assert refused.returncode == 2 and 'certificate is not trusted' in ' '.join(refused.stderr.split())
        done = subprocess.run([*command, '--out', tmp_path/'out', '--ca', certificates.authority], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert load_results(orthanc.objects(tmp_path/'got'), studies) == [uid]
    finally: proxy.shutdown()


def real_series(source):
    "The files of a real study, or None where it is not on this machine"
    if source == 'ge_head_study':
        folder = real_data('ge_head_study')
        return folder and sorted(path for path in folder.rglob('*') if path.is_file())
    labels = real_data('rsna_slices', 'labels.csv')
    if labels is None: return None
    table = pd.read_csv(labels)
    longest = table.patient.mode()[0]  # of whom there is a whole series; of the others there are single slices
    return [labels.parent/name for name in table.file[table.patient.eq(longest)]]


def as_sent(path, target):
    "A real slice as an archive takes it: one whose identifiers are no UIDs, as the competition's, is given valid ones; True where it is a CT slice"
    try: slice = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError: return False
    if slice.get('Modality') != 'CT': return False
    for name in 'StudyInstanceUID', 'SeriesInstanceUID', 'SOPInstanceUID': setattr(slice, name, valid_uid(slice[name].value))
    slice.file_meta.MediaStorageSOPInstanceUID = slice.SOPInstanceUID
    slice.SOPClassUID = slice.file_meta.MediaStorageSOPClassUID
    slice.save_as(target)
    return True


@needs_orthanc
@pytest.mark.parametrize('source', ['ge_head_study', 'rsna_slices'])
def test_real_studies_go_through_orthanc(source, orthanc, tmp_path):
    "From the archive and back, and what it then holds is valid"
    files = real_series(source)
    if files is None: pytest.skip('the real data is not on this machine')
    slices = [target for k, path in enumerate(files) if as_sent(path, target := tmp_path/f'{k}.dcm')]
    studies = {str(pydicom.dcmread(path).StudyInstanceUID) for path in slices}
    assert len(slices) > 20 and len(studies) == 1
    send(slices, orthanc.peer)
    uid = studies.pop()
    command = [sys.executable, '-m', 'rsna_ich.cli', 'predict', '--from-dicomweb', orthanc.web, '--study', uid, '--send-back', '--no-report', '--out', tmp_path/'out', '--jobs', '1']
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode in (0, 1), done.stderr  # 1: slices were left out, each named
    table = pd.read_csv(tmp_path/'out'/'slices.csv')
    assert len(table) == len(slices)
    objects = orthanc.objects(tmp_path/'got')
    assert load_results(objects, {uid: slices}) == [uid]
    assert objects['SR']
    if not VALIDATOR: pytest.skip('all but the validity of what came back: dciodvfy is not installed')
    for path in [path for kind in ('SR', 'SEG', 'OT') for path in objects.get(kind, [])]:
        said = subprocess.run([VALIDATOR, '-new', path], capture_output=True, text=True, timeout=60)
        assert [line for line in (said.stdout + said.stderr).splitlines() if line.startswith('Error')] == []


@needs_orthanc
def test_orthanc_has_no_such_study(orthanc, tmp_path):
    with pytest.raises(InputError, match='no such study'): fetch_study(orthanc.web, '1.2.3', tmp_path/'none')
    slice = pydicom.data.get_testdata_file('CT_small.dcm')
    with pytest.raises(InputError, match='404'): send([slice], f'{orthanc.url}/nowhere')


def test_killed_listeners_lose_nothing_and_do_nothing_twice(tmp_path):
    counted = overnight(tmp_path, n=5, kills=2, most=240)
    assert (counted['answered'], counted['lost'], counted['answered_twice'], counted['kills']) == (5, 0, 0, 2)
