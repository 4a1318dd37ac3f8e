"Many uploads at the same moment to the web application, good and hostile mixed: `python tests/load_app.py 50 --keep load.json` prints a table"
import argparse
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import suppress
from http.cookiejar import CookieJar
from pathlib import Path

import pandas as pd
import psutil

from rsna_ich.apps.sample import sample_path
from rsna_ich.core import real_data

BOUNDARY = 'a-boundary-that-is-in-no-file'
MOST = 30*2**20  # bytes that an upload may become here
SERVE = f'''import uvicorn, sys
from rsna_ich.apps.web import make_app
from rsna_ich.apps.uploads import Limits
app = make_app(threads=1, limits=Limits(seconds=60, upload_bytes=8*2**20, unpacked_bytes={MOST}))
uvicorn.run(app, port=int(sys.argv[1]), log_level='error', access_log=False, limit_concurrency=200)'''


def zipped(files):
    "The bytes of a zip of names to bytes"
    with io.BytesIO() as f:
        with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z:
            for name, data in files.items(): z.writestr(name, data)
        return f.getvalue()


def one_study():
    "The second simulated study of the sample, which does not bleed, as a zip"
    with zipfile.ZipFile(sample_path()) as z: return zipped({n: z.read(n) for n in z.namelist() if n.startswith('simulated-2/')})


def hostile_uploads():
    "Kind to its name, its bytes and what its owner is told"
    wrong = {'a text': ('notes.dcm', b'no picture', 'nothing of it could be read'), 'nothing': ('empty.dcm', b'', 'nothing of it could be read'),
             'a way out': ('../../x.dcm', b'x', 'leads out'), 'a zip that leads out': ('out.zip', zipped({'../x.dcm': b'x'}), 'no DICOM files'),
             'a zip bomb': ('bomb.zip', zipped({'big.dcm': bytes(MOST + 1)}), 'unpacks to more than'), 'half a zip': ('half.zip', one_study()[:9000], 'nothing of it could be read'),
             'too large': ('large.dcm', os.urandom(2**20)*9, 'are not taken')}
    for path in sorted((real_data('hostile') or Path('nowhere')).glob('*.dcm')): wrong[path.stem.replace('_', ' ')] = (path.name, path.read_bytes(), '')
    return wrong


class Browser:
    "One session with the application"
    def __init__(self, address):
        self.address = address
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def get(self, path='/'): return self.opener.open(self.address + path, timeout=120).read().decode()

    def send(self, name, data):
        "Upload one file; '' or the reason for which it was refused at once"
        self.csrf = re.search(r'csrf=([\w-]+)', self.get())[1]
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        headers = {'Content-Type': f'multipart/form-data; boundary={BOUNDARY}', 'Accept': 'application/json'}
        asked = urllib.request.Request(f'{self.address}/upload?csrf={self.csrf}', head + data + f'\r\n--{BOUNDARY}--\r\n'.encode(), headers)
        try: self.opener.open(asked, timeout=300).read()
        except urllib.error.HTTPError as e: return e.read().decode()
        return ''

    def answer(self, seconds):
        "The worklist once nothing waits any more, and the places in the queue that were shown on the way"
        places, end = [], time.monotonic() + seconds
        while 'data-upload' in (page := self.get()) and time.monotonic() < end:
            if place := re.search(r'place (\d+) in the queue', page): places.append(int(place[1]))
            time.sleep(.5)
        return page, places

    def end(self):
        "End the session, so that nothing of it stays on the server"
        self.opener.open(urllib.request.Request(f'{self.address}/end?csrf={self.csrf}', b''), timeout=120).read()


def memory(process):
    "MB of a process and of all that it has started"
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error): total += one.memory_info().rss
    return total/2**20


def visit(address, kind, upload, found, seconds):
    "Send one upload, wait for what becomes of it and note it"
    name, data, told = upload
    try:
        browser = Browser(address)
        began = time.monotonic()
        refused = browser.send(name, data)
        page, places = (refused, []) if refused else browser.answer(seconds)
        good = kind == 'good'
        right = 'not called' in page and 'data-upload' not in page if good else told in page and 'data-upload' not in page
        browser.end()
        why = '' if right else re.sub(r'<[^>]*>|\s+', ' ', page)[:600]
        found.append(dict(kind=kind, right=right, seconds=time.monotonic() - began, place=max(places, default=0), shrinks=places == sorted(places, reverse=True), why=why))
    except Exception as e: found.append(dict(kind=kind, right=False, seconds=0., place=0, shrinks=False, why=repr(e)))


def load(how_many, seconds=900):
    "A table with a row an upload, and the memory before, at most, and afterwards, in MB"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    address = f'http://127.0.0.1:{port}'
    server = subprocess.Popen([sys.executable, '-c', SERVE, str(port)], env=os.environ | dict(ICH_QUIET='1'))
    try:
        for _ in range(240):
            with suppress(OSError):
                if urllib.request.urlopen(f'{address}/health').read() == b'ok': break
            time.sleep(.5)
        process, found = psutil.Process(server.pid), []
        good, wrong = ('study.zip', one_study(), ''), hostile_uploads()
        visit(address, 'good', good, [], seconds)  # so that the reader is there
        before = highest = memory(process)
        turns = [('good', good) if k % 2 == 0 else list(wrong.items())[k//2 % len(wrong)] for k in range(how_many)]
        people = [threading.Thread(target=visit, args=(address, kind, upload, found, seconds)) for kind, upload in turns]
        for person in people: person.start()
        while any(person.is_alive() for person in people):
            highest = max(highest, memory(process))
            time.sleep(.5)
        visit(address, 'good', good, after := [], seconds)
        assert after[0]['right'], after
        return pd.DataFrame(found), dict(before=before, highest=highest, after=memory(process))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('uploads', type=int, nargs='?', default=50)
    parser.add_argument('--keep', help='JSON file for the table and the memory')
    args = parser.parse_args()
    found, used = load(args.uploads)
    if found.why.any(): print(found.why[found.why.ne('')].tolist())
    table = found.groupby('kind', sort=False).agg(uploads=('right', 'size'), right=('right', 'sum'), longest_wait_s=('seconds', 'max'), deepest_place=('place', 'max')).round()
    memory_mb = {name: round(value) for name, value in used.items()}
    print(table.to_string(), memory_mb, sep='\n')
    if args.keep: Path(args.keep).write_text(json.dumps(dict(table=table.reset_index().to_dict('records'), memory_mb=memory_mb), indent=1) + '\n')


if __name__ == '__main__': main()
