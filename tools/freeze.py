"Write constraints.txt: the versions that the tests passed with, from the environment that this runs in"
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# torch pins its own CUDA packages, and which they are depends on the platform
PLATFORM = re.compile(r'(nvidia-|cuda-|triton$|uvloop$)')
HEADER = '''\
# The versions that the whole test suite passed with. `make env` installs with them (pip install -c), so that a clone today and a
# clone in a year get the same environment. A constraint installs nothing: what is needed is in settings.ini.
# To refresh: remove .venv, `make env CONSTRAINTS=/dev/null`, `make test`, then `.venv/bin/python tools/freeze.py` and
# commit the difference.
# CUDA's packages are left out: torch pins the ones that it needs.
'''


def main():
    left_out = '--exclude-editable', '--exclude', 'pip', '--exclude', 'setuptools'
    freeze = [sys.executable, '-m', 'pip', 'list', '--format=freeze', *left_out]
    lines = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.splitlines()
    # `+cpu` and the like name a build, not a version
    pins = [line.split('+')[0] for line in lines if not PLATFORM.match(line.split('==')[0])]
    (ROOT/'constraints.txt').write_text(HEADER + '\n'.join(pins) + '\n')
    print(f'constraints.txt: {len(pins)} versions')


if __name__ == '__main__': main()
