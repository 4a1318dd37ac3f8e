"The Containerfile, read and not built: each step is one that builders know, the package builds from what is copied, and its command serves and is found healthy"
import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT/'Containerfile').read_text(encoding='utf-8')
LINES = [line for line in TEXT.replace('\\\n', ' ').splitlines() if line.strip() and not line.startswith('#')]
STEPS = [tuple(line.split(maxsplit=1)) for line in LINES]


KNOWN = 'FROM RUN WORKDIR COPY ENV VOLUME USER EXPOSE HEALTHCHECK ENTRYPOINT ARG CMD LABEL ADD SHELL STOPSIGNAL ONBUILD'.split()


def of(instruction): return [words for name, words in STEPS if name == instruction]


def test_every_step_is_known():
    assert STEPS[0][0] == 'FROM' and [step for step in STEPS if step[0] not in KNOWN or len(step) != 2] == []
    for command in of('RUN'): subprocess.run(['sh', '-n', '-c', command], check=True)  # the shell can parse it


def test_base_and_sources():
    assert re.fullmatch(r'python:3\.1[1-3]-slim', of('FROM')[0]) and len(of('FROM')) == 1
    for words in of('COPY'):
        assert [source for source in words.split()[:-1] if not (ROOT/source).exists()] == []


def test_extras_and_constraints():
    install = next(words for words in of('RUN') if 'pip install' in words)
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini')
    extras = re.search(r"\.\[([\w,]+)\]", install)[1].split(',')
    assert [name for name in extras if f'{name}_requirements' not in settings['DEFAULT']] == []
    assert '--constraint constraints.txt' in install and 'train' not in extras
    pins = dict(line.split('==') for line in (ROOT/'constraints.txt').read_text().split() if '==' in line)
    wanted = ' '.join(settings['DEFAULT'][name] for name in ['requirements', *(f'{name}_requirements' for name in extras)])
    for requirement in map(Requirement, wanted.split()):
        assert requirement.specifier.contains(pins[requirement.name], prereleases=True), requirement


def test_the_package_builds_from_what_is_copied(tmp_path):
    for words in of('COPY'):
        *sources, target = words.split()
        for source in sources:
            copy = shutil.copytree if (ROOT/source).is_dir() else shutil.copy
            copy(ROOT/source, tmp_path/target/(Path(source).name if target == './' else ''))
    command = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--no-index', '--no-deps', '--no-build-isolation', '.']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert 'Would install rsna' in done.stdout, done.stdout + done.stderr


def test_nobody_is_root():
    names = [name for name, _ in STEPS]
    assert re.fullmatch(r'[1-9]\d{3,}', of('USER')[-1])
    assert 'RUN' not in names[names.index('USER'):], 'nothing is installed as the user that serves'
    for option in '--read-only', '--tmpfs /scratch', '--cap-drop=all', '--security-opt=no-new-privileges', '--memory', '--pids-limit':
        assert option in TEXT


def test_what_it_calls_exists():
    from rsna_ich.apps.web import make_app
    entry, check = ast.literal_eval(of('ENTRYPOINT')[0]), of('HEALTHCHECK')[0]
    source = (ROOT/'rsna_ich'/'cli.py').read_text(encoding='utf-8')
    options = re.search(r'def _app\(\n(.*?)\n\):', source, re.S)[1]
    assert entry[:2] == ['ich', 'app']
    for option in [word for word in entry if word.startswith('--')] + ['--name', '--https']:
        assert re.search(rf'^    {option[2:]}:', options, re.M), option
    command = ast.literal_eval(check[check.index('['):])
    ast.parse(command[2])
    app = make_app()
    try: assert '/health' in command[2] and any(getattr(route, 'path', '') == '/health' for route in app.routes)
    finally: app.state.desk.close()
    assert f":{entry[entry.index('--port') + 1]}/health" in command[2]


@pytest.fixture
def served(tmp_path):
    "The container's command in its environment, with a folder for /scratch, on loopback: what checks its health"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    entry = ast.literal_eval(of('ENTRYPOINT')[0])
    swap = {'0.0.0.0': '127.0.0.1', entry[entry.index('--port') + 1]: port}
    environment = os.environ | dict(pair.split('=') for pair in of('ENV')[0].replace('/scratch', str(tmp_path)).split())
    server = subprocess.Popen([sys.executable, '-m', 'rsna_ich.cli', *[swap.get(word, word) for word in entry[1:]]], cwd=tmp_path, env=environment)
    check = of('HEALTHCHECK')[0]
    command = ast.literal_eval(check[check.index('['):])[2]
    yield lambda: subprocess.run([sys.executable, '-c', command.replace(':8000/', f':{port}/')], capture_output=True, timeout=60).returncode
    server.terminate()
    server.wait(60)
    assert list(tmp_path.glob('ich-app-*')) == [], 'uploads go when it ends'


def test_its_command_serves_and_is_found_healthy(served, tmp_path):
    assert served() != 0, 'nothing answers before the application has started'
    for _ in range(100):
        if served() == 0: break
        time.sleep(1)
    assert served() == 0
    assert list(tmp_path.glob('ich-app-*')) != [], 'uploads lie below TMPDIR'
