"The Containerfile, read and not built: what it copies is there, it does not run as root, and what it calls exists"
import ast
import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT/'Containerfile').read_text(encoding='utf-8')
LINES = [line for line in TEXT.replace('\\\n', ' ').splitlines() if line.strip() and not line.startswith('#')]
STEPS = [tuple(line.split(maxsplit=1)) for line in LINES]


def of(instruction): return [words for name, words in STEPS if name == instruction]


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
