"A worklist through `ich listen`, which is killed again and again: every study answered, none twice. `python tests/overnight.py 200 10 worklist.json` runs it and keeps what it counted"
import copy
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.sop_class import CTImageStorage

from rsna_ich.apps.pacs import Peer, send_to_peer
from rsna_ich.apps.results import valid_uid
from rsna_ich.core import InputError
from rsna_ich.simulate.competition import write_competition


def slices_of(folder, patients, seed):
    "Slices of simulated patients that can be read, by study"
    source = write_competition(folder/'competition', patients, seed=seed, size=64, max_slices=4, test_share=.2, n_jobs=1)
    found = {}
    for path in sorted(source.rglob('*.dcm')):
        ds = pydicom.dcmread(path)
        try: ds.pixel_array
        except Exception: continue  # the one that is cut short
        found.setdefault(str(ds.StudyInstanceUID), []).append(ds)
    return list(found.values())


def as_sent(ds, number, dice):
    "A slice as a scanner would send it in study `number`, with noise of its own"
    ds = copy.deepcopy(ds)
    for name in 'StudyInstanceUID', 'SeriesInstanceUID', 'SOPInstanceUID': setattr(ds, name, valid_uid(f'{ds[name].value} {number}'))
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    pixels = ds.pixel_array
    ds.PixelData = (pixels + dice.integers(0, 4, pixels.shape)).astype(pixels.dtype).tobytes()
    return ds


def simulated_studies(folder, n, seed=5, most=20):
    "`n` studies of up to `most` simulated patients, each study with noise of its own: UID to files"
    (folder/'slices').mkdir()
    dice, found = np.random.default_rng(seed), {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the competition's UIDs are none
        patients = slices_of(folder, min(n + 1, most), seed)
        for k in range(n):
            slices = [as_sent(ds, k, dice) for ds in patients[k % len(patients)]]
            paths = [folder/'slices'/f'{k}_{j}.dcm' for j in range(len(slices))]
            for ds, path in zip(slices, paths): ds.save_as(path)
            found[slices[0].StudyInstanceUID] = paths
    return found


class Archive:
    "A node that counts what it is sent"

    def __init__(self):
        self.arrivals, self.reports = Counter(), Counter()  # object to times it came; study to reports with different UIDs
        self.node = AE('ARCHIVE')
        self.node.supported_contexts = StoragePresentationContexts
        server = self.node.start_server(('127.0.0.1', 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self.take)])
        self.peer = Peer('ARCHIVE', '127.0.0.1', server.server_address[1])

    def take(self, event):
        ds = event.dataset
        self.arrivals[ds.SOPInstanceUID] += 1
        if self.arrivals[ds.SOPInstanceUID] == 1 and ds.Modality == 'SR': self.reports[ds.StudyInstanceUID] += 1
        return 0


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start(inbox, archive, port):
    "`ich listen` in a process that can be killed"
    command = [sys.executable, '-m', 'rsna_ich.cli', 'listen', str(inbox), '--to', str(archive.peer), '--port', str(port), '--rest', '1']
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    for _ in range(600):
        assert process.poll() is None, 'the listener ended by itself'
        try: socket.create_connection(('127.0.0.1', port), 1).close()
        except OSError: time.sleep(.1)
        else: return process
    raise AssertionError('the listener does not listen')


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def send_until_taken(paths, peer, alive):
    "As a scanner does it: what was not acknowledged is sent again"
    for _ in range(100):
        try: return send_to_peer(paths, peer, 'SCANNER')
        except InputError:
            alive()
            time.sleep(.2)
    raise AssertionError('a study was never taken')


def overnight(folder, n=200, kills=10, seed=0, most=3600):
    "Send `n` studies through a listener that is killed `kills` times; what was counted"
    archive, port, dice = Archive(), free_port(), random.Random(seed)
    studies = simulated_studies(Path(folder), n)
    inbox, here = Path(folder)/'inbox', Peer('RSNA_ICH', '127.0.0.1', port)
    moments = sorted(dice.sample(range(1, 2*n), kills))  # among the sendings and the answers
    process, begun, sent = start(inbox, archive, port), time.time(), 0
    killed = []

    def strike():
        "Kill and start again where it is time"
        nonlocal process
        if not moments or sent + len(archive.reports) < moments[0]: return
        moments.pop(0)
        time.sleep(dice.random())
        kill(process)
        killed.append((sent, len(archive.reports)))
        process = start(inbox, archive, port)
    try:
        for paths in studies.values():
            send_until_taken(paths, here, lambda: None)
            sent += 1
            strike()
        while len(archive.reports) < len(studies) and time.time() - begun < most:
            strike()
            time.sleep(.2)
        time.sleep(4)  # for what would come twice
    finally:
        kill(process)
        archive.node.shutdown()
    return dict(studies=len(studies), slices=sum(map(len, studies.values())), kills=len(killed), killed_at=killed,
                answered=len(archive.reports.keys() & studies.keys()), lost=len(studies.keys() - archive.reports.keys()),
                answered_twice=sum(count > 1 for count in archive.reports.values()), objects=len(archive.arrivals),
                objects_sent_again=sum(archive.arrivals.values()) - len(archive.arrivals), minutes=round((time.time() - begun)/60, 1))


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as folder: counted = overnight(folder, int(sys.argv[1]), int(sys.argv[2]))
    print(counted)
    Path(sys.argv[3]).write_text(json.dumps(counted) + '\n')
