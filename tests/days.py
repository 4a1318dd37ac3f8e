"""Bad days for the commands: killed at any moment, no room on the disk, folders that may not be written or that change meanwhile

`python tests/days.py kill predict --times 20` does one thing to one command twenty times, from a seed, and counts what was lost;
`--all` does everything to every command, which takes a while. What was imported once is forked for each try, so a try costs
what the command itself costs. `test_days.py` runs a few of each; `nbs/benchmarks/04_hostile.ipynb` tells what came out."""
import argparse
import collections
import ctypes
import hashlib
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rsna_ich.core import Journal

os.environ |= dict(ICH_QUIET='1', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', MPLBACKEND='agg')
COMPETITION = '--patients 10 --seed 8 --size 96 --max-slices 6 --prevalence .7 --jobs 1'.split()
COMMANDS = {
    'check': 'check {competition} --out out --pixels --jobs 1',
    'store': 'store {competition} out --size 48 --jobs 1',
    'phantom': 'phantom out --patients 3 --seed 9 --size 64 --max-slices 4 --jobs 1',
    'train': 'train {competition} --recipe quick --epochs 1 --out out --jobs 1',
    'predict': 'predict {competition}/stage_2_train --out out --jobs 1',
    'evaluate': 'evaluate {predictions} {competition}/stage_2_train.csv --out out',
    'kaggle build': 'kaggle build --dest out --user somebody --no-wheels'}
HEAVY = {'train', 'phantom', 'kaggle build'}  # These import torch


# A command in a process of its own

def preload(heavy):
    "Import before the first fork what commands import late"
    import importlib
    light = 'cli data.quality data.store data.png predict.predictor predict.worklist judge.measures judge.report apps.kaggle'
    for name in (light + (' learn.training learn.published simulate.competition' if heavy else '')).split(): importlib.import_module(f'rsna_ich.{name}')


def said_of(folder): # Beside it: where the folder is full, there is still room to say so
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f'{folder.name}.said')


def start(command, inputs, folder, before=lambda: None):
    "The id of a forked process that runs `ich command` in `folder` after `before()`; it says what it says into a file beside it"
    args = command if isinstance(command, list) else [o.format(**inputs) for o in COMMANDS[command].split()]
    pid = os.fork()
    if pid: return pid
    status = 99
    try:
        os.setsid()
        said_in = said_of(folder)
        os.chdir(folder)
        said = os.open(said_in, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        for stream in 1, 2: os.dup2(said, stream)
        before()
        from rsna_ich.cli import app
        app(args, prog_name='ich')
    except SystemExit as e: status = e.code or 0
    except BaseException: traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally: os._exit(status)


def end(pid):
    "A process's exit status, or minus the signal that ended it"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ich(command, inputs, folder, before=lambda: None):
    "Status of a command, and what it said"
    Path(folder).mkdir(parents=True, exist_ok=True)
    status = end(start(command, inputs, folder, before))
    return status, said_of(folder).read_text(errors='replace')


TOOK = re.compile(rb'; [\d.]+ s</p>')  # How long a page says that the work took


def content(folder):
    "{path: hash} of what a command left, without its own locks and what a killed process had begun"
    found = {}
    for path in sorted((Path(folder)/'out').rglob('*')):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and not path.name.endswith('.lock') and path.name != '.lock' and '.tmp' not in relative:
            found[relative] = hashlib.sha256(TOOK.sub(b'', path.read_bytes())).hexdigest()
    return found


def temporaries(folder): return sum(o.name.endswith('.tmp') for o in Path(folder).rglob('*'))


def differs(a, b): return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


# Moments

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.truncate', 'os.link', 'shutil.rmtree'}


def watch(counter, folder, at=None, what=None):
    "Count every file that is opened to be written, made, renamed or removed below `folder`; before the one with number `at`, do `what`"
    folder = os.path.realpath(folder) + os.sep
    def hook(event, args):
        if event == 'open' and not (isinstance(args[2], int) and args[2] & WRITES): return
        if event != 'open' and event not in EVENTS: return
        path = args[0]
        if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(folder): return
        n = struct.unpack('q', counter[:8])[0] + 1
        counter[:8] = struct.pack('q', n)
        if n == at: what()
    sys.addaudithook(hook)


def watched(at=None, what=None):
    "A shared counter, and what a child does to count its events"
    counter = mmap.mmap(-1, 8)
    return counter, lambda: watch(counter, os.getcwd(), at, what)


def die(): os.killpg(0, signal.SIGKILL)


def processor_seconds(pid): return time.clock_gettime((~pid << 3) | 2)


def kill_after(pid, seconds):
    "Kill a process and its children when it has used the processor for so long; its status"
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        try:
            if processor_seconds(pid) > seconds: os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, OSError): pass
        time.sleep(.002)


class Whole:
    "What a command leaves when nothing happens to it"

    def __init__(self, command, inputs, folder):
        self.command, self.inputs, self.folder = command, inputs, Path(folder)
        counter, before = watched()
        self.status, said = ich(command, inputs, self.folder, before)
        assert self.status in (0, 1), said
        self.events = struct.unpack('q', counter[:8])[0]
        self.content = content(self.folder)
        self.bytes = sum(o.stat().st_size for o in (self.folder/'out').rglob('*') if o.is_file())
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        again = self.folder.with_name(f'{self.folder.name}-again')
        ich(command, inputs, again)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.seconds = now.ru_utime + now.ru_stime - began.ru_utime - began.ru_stime
        self.differs = differs(self.content, content(again))

    def ends_the_same(self, folder, **more):
        "The command once more, undisturbed: what is lost, as text"
        if 'predict' == self.command and (Path(folder)/'out'/'slices.csv').exists() and not (Path(folder)/'out'/'.writing').exists():
            return self._is_whole(folder)
        status, said = ich(self.command, self.inputs, folder)
        if 'Traceback' in said or status not in (0, 1): return f'status {status}: {said[-400:]}'
        return self._is_whole(folder)

    def _is_whole(self, folder):
        "What differs from an undisturbed run; a finished `ich predict` is not run again, since it would refuse"
        if wrong := differs(self.content, content(folder)): return f'not the same: {", ".join(wrong[:5])}'
        return ''


# What is done to a command: each gives a dict with what happened and `lost`, '' where nothing was

def kill(whole, rng, folder):
    "SIGKILL once or twice, at a seeded moment: before the n-th file is written, made, renamed or removed, or after so much of the work"
    moments, statuses = [], []
    for _ in range(rng.choice([1, 1, 2])):
        folder.mkdir(parents=True, exist_ok=True)
        if rng.random() < .6:
            at = rng.randrange(1, whole.events + 1)
            moments.append(f'file {at} of {whole.events}')
            statuses.append(end(start(whole.command, whole.inputs, folder, watched(at, die)[1])))
        else:
            share = rng.random()
            moments.append(f'{share:.0%} of the work')
            statuses.append(kill_after(start(whole.command, whole.inputs, folder), share*whole.seconds))
    left = temporaries(folder)
    return dict(moment=', '.join(moments), struck=-signal.SIGKILL in statuses, temporaries=left, lost=whole.ends_the_same(folder))


NEWNS, NEWUSER, REC, PRIVATE, REMOUNT, READ_ONLY, BIND = 0x20000, 0x10000000, 0x4000, 0x40000, 32, 1, 4096


def libc(name, *args):
    lib = ctypes.CDLL(None, use_errno=True)
    args = [o.encode() if isinstance(o, str) else o for o in args]
    if getattr(lib, name)(*args): raise OSError(ctypes.get_errno(), f'{name}: {os.strerror(ctypes.get_errno())}')


def own_mounts():
    "A namespace in which this process may mount what nobody else sees"
    user, group = os.getuid(), os.getgid()
    libc('unshare', NEWNS | (0 if user == 0 else NEWUSER))
    if user:
        Path('/proc/self/setgroups').write_text('deny')
        Path('/proc/self/uid_map').write_text(f'0 {user} 1')
        Path('/proc/self/gid_map').write_text(f'0 {group} 1')
    libc('mount', None, '/', None, REC | PRIVATE, None)


def apart(f, *args):
    "What `f(*args)` returns, from a forked process, as JSON"
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try: answer = f(*args)
        except BaseException as e: answer = dict(error=f'{type(e).__name__}: {e}', where=traceback.format_exc())
        with os.fdopen(write, 'w') as stream: stream.write(json.dumps(answer))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream: said = stream.read()
    end(pid)
    return json.loads(said)


def can_mount():
    "Are namespaces with mounts of their own allowed here?"
    def try_it():
        own_mounts()
        with tempfile.TemporaryDirectory() as d:
            libc('mount', 'none', d, 'tmpfs', 0, 'size=64k')
            libc('umount', d)  # or the folder is busy, and its removal an error
        return {}
    return 'error' not in apart(try_it)


def said_well(status, said, words):
    "What is wrong with how a command ended that could not do its work, '' where it said so in one line"
    if 'Traceback' in said: return 'a traceback: ' + said[-300:]
    if status != 2: return f'status {status} where it could not do its work: {said[-300:]}'
    if not any(o in said for o in words): return f'no word of it: {said[-300:]}'
    return ''


NO_ROOM = 'No space left', 'no room', 'File too large', 'quota'


def full(whole, rng, folder):
    "A file system too small for what the command writes; then with room"
    size = rng.randrange(0, int(whole.bytes*1.1) + 8192)
    return apart(_full, whole, size, folder)


def _full(whole, size, folder):
    own_mounts()
    folder.mkdir(parents=True)
    libc('mount', 'none', str(folder), 'tmpfs', 0, f'size={size//4096*4096 + 8192}')  # a page for what it says
    status, said = ich(whole.command, whole.inputs, folder)
    struck = status not in (0, 1)
    lost = said_well(status, said, NO_ROOM) if struck else ''
    libc('mount', 'none', str(folder), 'tmpfs', REMOUNT, 'size=1g')
    return dict(moment=f'{size:,} of {whole.bytes:,} bytes', struck=struck, lost=lost or whole.ends_the_same(folder))


def small_files(whole, rng, folder):
    "No file may grow beyond a limit, as under a quota; then without it"
    sizes = [o.stat().st_size for o in (whole.folder/'out').rglob('*') if o.is_file()]
    limit = rng.randrange(1, max(2, max(sizes)))
    folder.mkdir(parents=True)
    def before():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    status, said = ich(whole.command, whole.inputs, folder, before)
    struck = status not in (0, 1)
    said = said if len(said) < limit else said + ' (no room to say more) No space left'
    lost = said_well(status, said, NO_ROOM) if struck else ''
    return dict(moment=f'files of {limit:,} bytes', struck=struck, lost=lost or whole.ends_the_same(folder))


WAYS = dict(kill=kill, full=full, small_files=small_files)


# Counting

def made_inputs(folder, say=print):
    "A simulated competition and predictions for it"
    folder = Path(folder)
    inputs = dict(competition=str(folder/'competition'/'out'), predictions=str(folder/'predictions'/'out'))
    if not (folder/'competition'/'out'/'phantom.json').exists():
        kept, COMMANDS['phantom'] = COMMANDS['phantom'], ' '.join(['phantom out', *COMPETITION])
        status, said = ich('phantom', inputs, folder/'competition')
        COMMANDS['phantom'] = kept
        assert status == 0, said
    if not (folder/'predictions'/'out'/'report.html').exists():
        status, said = ich('predict', inputs, folder/'predictions')
        assert status == 1, said  # the one truncated file of every simulated competition
    return inputs


def tries(way, command, times, seed, work, keep=None):
    "Do something to a command `times` times; a dict a try, those that an earlier run has in its journal `keep` not again"
    work = Path(work)
    inputs = made_inputs(work/'inputs')
    journal = Journal(keep, dict(way=way, command=command, seed=seed, args=COMMANDS[command]))
    if len(journal.entries) >= times: return journal.entries[:times]
    whole = Whole(command, inputs, work/f'{command}-{os.getpid()}'/'whole')
    if whole.differs: print(f'{command}: two runs differ in {", ".join(whole.differs)}', flush=True)
    for i in range(len(journal.entries), times):
        folder = whole.folder.with_name(f'{way}-{i}')
        journal.add(WAYS[way](whole, random.Random(f'{way} {command} {seed} {i}'), folder) | dict(same_twice=not whole.differs))
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(whole.folder.parent)
    return journal.entries


def counted(found):
    "How many were tried, struck and lost"
    return collections.Counter(tried=len(found), struck=sum(o['struck'] for o in found), lost=sum(bool(o['lost'] or o.get('error')) for o in found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('way', choices=WAYS)
    parser.add_argument('command', choices=COMMANDS)
    parser.add_argument('--times', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--work', help='folder that keeps the inputs for the next call')
    parser.add_argument('--keep', help='a journal; the same call goes on from it')
    args = parser.parse_args()
    preload(args.command in HEAVY or not args.work)
    with tempfile.TemporaryDirectory() as d:
        found = tries(args.way, args.command, args.times, args.seed, args.work or d, args.keep)
    for one in found:
        if one.get('lost') or one.get('error'): print(json.dumps(one), flush=True)
    print(args.way, args.command, dict(counted(found)), flush=True)
    sys.exit(bool(counted(found)['lost']))


if __name__ == '__main__': main()
