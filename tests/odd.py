"""A process that runs `ich` commands in forks of itself, each after something odd has been arranged, and says how they ended

`test_odd.py` talks to it, one line of JSON for each request and each answer: what was imported once is there for every command."""
import ctypes
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

from days import end, preload, said_of, start


class _Header(ctypes.Structure):
    _fields_ = [('version', ctypes.c_uint32), ('pid', ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [('effective', ctypes.c_uint32), ('permitted', ctypes.c_uint32), ('inheritable', ctypes.c_uint32)]


def without_power():
    "Root without its privileges is bound by permissions as everyone else"
    lib = ctypes.CDLL(None, use_errno=True)
    if os.getuid() == 0 and lib.capset(ctypes.byref(_Header(0x20080522, 0)), (_Data*2)()): raise OSError(ctypes.get_errno(), 'capset')


def at_first_slice(folder, what):
    "Do `what(folder)` before the first slice is opened, once the folder has been listed"
    done = []
    def hook(event, args):
        if event != 'open' or done or isinstance(args[0], int) or not os.fsdecode(args[0]).endswith('00.dcm'): return
        done.append(True)
        what(Path(folder))
    sys.addaudithook(hook)


def spoil(folder):
    "One file grows, one is cut, one becomes a folder, one goes, one comes"
    with open(folder/'02.dcm', 'ab') as f: f.write(bytes(100))
    os.truncate(folder/'03.dcm', 700)
    (folder/'04.dcm').unlink()
    (folder/'04.dcm').mkdir()
    (folder/'05.dcm').unlink()
    shutil.copy(folder/'01.dcm', folder/'06.dcm')


def clock_goes_back():
    "Each look at the clock shows a year earlier than the one before it"
    real, looks = time.time, []
    def jump():
        looks.append(None)
        return real() - len(looks)*365*24*3600
    time.time = jump


def little_memory():
    "A gigabyte more than there is now"
    now = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, resource.RLIM_INFINITY))


BEFORE = dict(nothing=lambda: None, without_power=without_power, clock_goes_back=clock_goes_back, little_memory=little_memory,
              spoil=lambda folder: at_first_slice(folder, spoil), vanish=lambda folder: at_first_slice(folder, shutil.rmtree))


def answer(folder, commands, before='nothing', options=()):
    "(status, what was said) of commands that start together"
    folders = [Path(folder)/f'said-{i}' for i in range(len(commands))]
    def arrange(): os.chdir(folder); BEFORE[before](*options)
    for o in folders: o.mkdir(exist_ok=True)
    pids = [start(command, {}, o, arrange) for command, o in zip(commands, folders)]
    return [(end(pid), said_of(o).read_text(errors='replace')) for pid, o in zip(pids, folders)]


def main():
    preload(False)
    print('ready', flush=True)
    for line in sys.stdin: print(json.dumps(answer(**json.loads(line))), flush=True)


if __name__ == '__main__': main()
