"The house rules: modules in step with notebooks, notebooks clean, imports downwards, a light start, documented parameters"
import ast
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
from fastcore.docments import docments
from nbdev.doclinks import nbglob
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
NBS, LIB = ROOT/'nbs', ROOT/'rsna_ich'
NOTEBOOKS = sorted(nbglob(NBS, as_path=True))
OLDEST = (3, 11)
# What takes seconds to import: nothing of it may be loaded by what must start at once
HEAVY = 'torch torchvision fastai timm matplotlib seaborn sklearn skimage nilearn scipy IPython'.split()
LONGEST_CELL = 60  # lines of an exported cell
LARGEST_NOTEBOOK = 2e6  # bytes, pictures included


def read(path): return json.loads(path.read_text(encoding='utf-8'))
def code_cells(path): return [c for c in read(path)['cells'] if c['cell_type'] == 'code']
def source(cell): return ''.join(cell['source'])
def name(path): return path.relative_to(NBS).as_posix() if path.is_relative_to(NBS) else path.name
def is_exported(src): return re.match(r'#\|\s*export', src)


def default_exp(path):
    "The module that the notebook at `path` exports to, or None"
    found = (re.search(r'^#\|\s*default_exp\s+(\S+)', source(c), re.M) for c in code_cells(path))
    return next((m[1] for m in found if m), None)


ORDER = [m for m in map(default_exp, NOTEBOOKS) if m]
# Data goes down this list: a wing imports only from wings before it, and from the root's `core`, `labels`, `metrics` and `page`
WINGS = 'data simulate model learn predict judge apps'.split()
# These wings and the root load neither of the learning libraries until they are asked to learn
LIGHT_WINGS = ['root', 'data', 'predict', 'judge']
MODULES = sorted(ORDER)
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
each_module = pytest.mark.parametrize('module', MODULES)


# Modules and notebooks

@pytest.fixture(scope='session')
def exported(tmp_path_factory):
    "A copy of the project, exported and cleaned by nbdev's own commands"
    copy = tmp_path_factory.mktemp('project')
    for file in 'pyproject.toml', 'settings.ini': shutil.copy(ROOT/file, copy)
    shutil.copytree(NBS, copy/'nbs', ignore=shutil.ignore_patterns('.*', '_proc', '__pycache__'))
    (copy/'rsna_ich').mkdir()
    shutil.copy(LIB/'__init__.py', copy/'rsna_ich')
    for command in 'nbdev_export', 'nbdev_clean':
        code = f'from nbdev.{"doclinks" if command == "nbdev_export" else "clean"} import {command}; {command}.__wrapped__()'
        done = subprocess.run([sys.executable, '-c', code], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return copy


def test_modules_are_in_step_with_notebooks(exported):
    def modules(lib): return {p.relative_to(lib).as_posix(): p.read_text(encoding='utf-8') for p in lib.rglob('*.py')}
    ours, theirs = modules(LIB), modules(exported/'rsna_ich')
    assert sorted(ours) == sorted(theirs), 'a module without its notebook, or a notebook without its module: `make export`'
    assert [m for m in ours if ours[m] != theirs[m]] == [], 'these differ from their notebooks: `make export`'


def test_notebooks_are_clean(exported):
    "As `nbdev-clean` leaves them: no execution counts, no metadata"
    def cleaned(path): return exported/'nbs'/path.relative_to(NBS)
    dirty = [name(p) for p in NOTEBOOKS if p.read_text(encoding='utf-8') != cleaned(p).read_text(encoding='utf-8')]
    assert dirty == [], 'run `make export`'


@each_notebook
def test_kept_outputs(path):
    "No error is among the outputs, and no path of the machine that made them"
    assert path.stat().st_size < LARGEST_NOTEBOOK, f'{path.stat().st_size/1e6:.1f} MB: fewer or smaller pictures'
    for cell in code_cells(path):
        assert not cell.get('execution_count')
        for output in cell['outputs']:
            assert output['output_type'] != 'error', f'an error is kept in\n{source(cell)}'
            texts = {k: v for k, v in output.get('data', {}).items() if k.startswith('text/')} | {'text': output.get('text', '')}
            for text in (''.join(t) for t in texts.values()):
                assert not machine_paths(text), f'{machine_paths(text)} in the output of\n{source(cell)}'


def machine_paths(text):
    "What in `text` looks like a path of one machine"
    return re.findall(r'(?<![\w.:/-])/(?:work|root|home|Users|tmp|var|mnt|opt)/[^\s\'"<>)]+', text)


def test_machine_paths():
    assert machine_paths("saved to /tmp/abc/x.npy, '/home/someone/data'") == ['/tmp/abc/x.npy,', '/home/someone/data']
    assert machine_paths('https://example.org/home/x /kaggle/input/x shared/data/home/x') == []


@each_notebook
def test_notebook_reads_as_an_article(path):
    cells = read(path)['cells']
    first = next((source(c) for c in cells if c['cell_type'] == 'markdown'), '')
    assert re.match(r'# \S.*\n+> \S', first), 'the first markdown cell is `# Title` and a one-line `> subtitle`'
    code, prose = code_cells(path), [c for c in cells if c['cell_type'] == 'markdown']
    assert len(prose)*5 >= len(code), f'{len(prose)} cells of prose to {len(code)} of code'
    for src in filter(is_exported, map(source, code)):
        assert src.count('\n') < LONGEST_CELL, f'an exported cell of {src.count(chr(10))+1} lines:\n{src[:200]}'
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(src).body}
        assert len(kinds) < 2, f'exported imports stand alone in their cell:\n{src[:200]}'
    if default_exp(path): assert 'nbdev_export()' in source(code[-1]), 'the last cell exports'


@each_notebook
def test_links_lead_to_files(path):
    "To notebooks that are there, by their names and not by numbers that change"
    prose = '\n'.join(source(c) for c in read(path)['cells'] if c['cell_type'] == 'markdown')
    links = [(text, target.partition('#')[0]) for text, target in re.findall(r'\[([^\]]+)\]\(([^)\s]+)\)', prose)]
    files = [(text, target) for text, target in links if target and not re.match(r'[a-z]+:', target)]
    assert [target for _, target in files if not (path.parent/target).exists()] == []
    assert [text for text, _ in files if re.match(r'\d\d[a-z]?_', text)] == []


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if default_exp(p)], ids=name)
def test_notebook_tests_what_it_exports(path):
    sources = [source(c) for c in code_cells(path)]
    exported = [s for s in sources if is_exported(s)]
    tests = [s for s in sources if not is_exported(s) and re.search(r'\btest_\w+\(|\bassert\b|\bExceptionExpected\b', s)]
    assert len(tests)*2 >= len(exported)-1, f'{len(exported)} exported cells, {len(tests)} that assert something'


# What imports what

def module_path(module): return LIB/f'{module.replace(".", "/")}.py'
def wing(module): return module.split('.')[0] if '.' in module else 'root'


def imported_names(code, module='', package='rsna_ich'):
    "Pairs of a module of the package and a name that `code` of `module` imports from it anywhere, also inside functions"
    folder = [package, *module.split('.')[:-1]]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((a.name.partition('.')[2], '') for a in node.names if a.name.startswith(f'{package}.'))
        elif isinstance(node, ast.ImportFrom):
            above = folder[:len(folder)-node.level+1] if node.level else []
            base = '.'.join(filter(None, [*above, node.module]))
            if base == package or base.startswith(f'{package}.'):
                yield from ((base.partition('.')[2], a.name) for a in node.names)


def imported_modules(code, module='', modules=None):
    "The package's modules that `code` of `module` imports, among `modules`"
    pairs = list(imported_names(code, module))
    named = {base for base, _ in pairs} | {f'{base}.{name}'.strip('.') for base, name in pairs}
    return named & set(ORDER if modules is None else modules)


def test_imported_modules():
    lines = ['from rsna_ich.core import *', 'import rsna_ich.labels as l, numpy', 'from . import store']
    code = '\n'.join([*lines, 'from .. import metrics', 'from ..judge.page import tile', 'def f():', '    from .dicom import _hu'])
    known = {'core', 'labels', 'metrics', 'judge.page', 'data.store', 'data.dicom', 'data.png'}
    assert imported_modules(code, 'data.crop', known) == known - {'data.png'}
    assert ('data.dicom', '_hu') in set(imported_names(code, 'data.crop'))


CODE = {m: module_path(m).read_text(encoding='utf-8') for m in MODULES if module_path(m).exists()}
IMPORTS = {m: imported_modules(code, m) for m, code in CODE.items()}


@each_module
def test_wings_import_only_wings_before_them(module):
    "The doors `cli` and `all` lead everywhere; what else lies in the root, and every wing, is used from below alone"
    if module in ('cli', 'all'): return
    before = ['root', *WINGS[:WINGS.index(wing(module))+1]] if wing(module) != 'root' else ['root']
    assert [m for m in IMPORTS[module] if wing(m) not in before or m in ('cli', 'all')] == []


@each_module
def test_no_module_uses_the_private_names_of_another(module):
    private = [f'{m}.{n}' for m, n in imported_names(CODE[module], module) if re.match(r'_[^_]', n)]
    assert private == []


def threaded_parquet(code):
    "Lines of `code` where Arrow reads Parquet with several threads: `pd.read_parquet`, or pyarrow's own `read_table`"
    tree = ast.parse(code)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == 'pyarrow.parquet']
    own = {alias.asname or alias.name for node in imports for alias in node.names if alias.name == 'read_table'}
    readers = own | {'pd.read_parquet', 'pandas.read_parquet', 'pq.read_table'}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in readers]
    return [c.lineno for c in calls if not any(k.arg == 'use_threads' and ast.unparse(k.value) == 'False' for k in c.keywords)]


def test_threaded_parquet_is_found():
    code = 'from pyarrow.parquet import read_table\npd.read_parquet(f)\nread_table(f)\nread_table(f, use_threads=False)\nread_parquet(f)'
    assert threaded_parquet(code) == [2, 3]
    assert threaded_parquet('from rsna_ich.labels import read_table\nread_table(f)') == []


@each_module
def test_parquet_is_read_by_one_thread(module):
    "Arrow's threads can abort a process that has done its work: see `core.read_parquet`"
    assert threaded_parquet(CODE[module]) == []


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if default_exp(p)], ids=name)
def test_notebooks_and_modules_are_named_alike(path):
    folder, _, module = default_exp(path).rpartition('.')
    assert path.relative_to(NBS).parent.as_posix() == (folder or '.')
    assert re.fullmatch(r'\d\d_' + module, path.stem)


@pytest.mark.parametrize('module', [m for m in MODULES if wing(m) in LIGHT_WINGS])
def test_light_wings_import_no_learning_library(module):
    top = ast.parse(CODE[module]).body
    names = [a.name for n in top if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in top if isinstance(n, ast.ImportFrom) and not n.level]
    assert {n.split('.')[0] for n in names} & {'torch', 'torchvision', 'fastai', 'timm'} == set()


def public_definitions(module):
    "The names in the `__all__` of `module` that it defines itself"
    body = ast.parse(CODE[module]).body
    assigned = [(t, n.value) for n in body if isinstance(n, ast.Assign) for t in n.targets]
    exported = next((ast.literal_eval(v) for t, v in assigned if getattr(t, 'id', '') == '__all__'), [])
    own = {n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {part.id for t, _ in assigned for part in ast.walk(t) if isinstance(part, ast.Name)}
    return own & set(exported)


def test_one_name_has_one_meaning():
    "No two modules export different things under one name; the commands of `cli` are no names to import"
    homes = {}
    for module in CODE:
        for name in public_definitions(module): homes.setdefault(name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


@pytest.mark.parametrize('module', [m for m in MODULES if m != 'all'])
def test_modules_export_what_they_define(module):
    "No lists of re-exports: what is wanted together comes from `rsna_ich.all`"
    assert '_all_ =' not in CODE[module].replace('__all__ =', '')


def test_all_brings_names_that_are_there():
    "`rsna_ich.all` says where each of its names is from: a module that is renamed is renamed there too"
    import rsna_ich.all as door
    assert {name: module for name, module in door._MODULE_OF.items() if name not in public_definitions(module)} == {}
    assert 35 <= len(door.__all__) <= 45


def test_imports_go_round_in_no_circle(): TopologicalSorter(IMPORTS).prepare()


def test_one_module_per_notebook(): assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize('module', ['rsna_ich', *(f'rsna_ich.{m}' for m in ('core', 'labels', 'data.dicom', 'data.quality', 'cli', 'all'))])
def test_light_start(module):
    "What `ich --help` and `import rsna_ich` load: modules counted, not seconds, which depend on the machine"
    code = f'import sys, {module}; print(*sorted({{m.split(".")[0] for m in sys.modules}} & set({HEAVY!r})))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Python versions

def test_supported_pythons():
    requires = SpecifierSet(metadata.metadata('rsna_ich')['Requires-Python'])
    assert all(requires.contains(v) for v in ('3.11.0', '3.12.1', '3.13.0')) and not requires.contains('3.10.13')


def plain(src): return '\n'.join('' if re.match(r'\s*[%!]', line) else line for line in src.splitlines())


SCRIPTS = [*(p for d in (LIB, ROOT/'tests', ROOT/'tools') for p in sorted(d.rglob('*.py'))), ROOT/'setup.py']


@pytest.mark.parametrize('path', [*NOTEBOOKS, *SCRIPTS], ids=name)
def test_no_syntax_newer_than_the_oldest_python(path):
    sources = [plain(source(c)) for c in code_cells(path)] if path.suffix == '.ipynb' else [path.read_text(encoding='utf-8')]
    for src in sources: ast.parse(src, feature_version=OLDEST)


def test_versions_agree():
    import rsna_ich
    assert f'version: {rsna_ich.__version__}\n' in (ROOT/'CITATION.cff').read_text(encoding='utf-8')
    assert f'## {rsna_ich.__version__}' in (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')


# Documentation

def undocumented(symbol):
    "What is missing from the documentation of the function or class `symbol`: docstrings (a class's methods too), parameters"
    label = symbol.__name__
    missing = [] if (symbol.__doc__ or '').strip() else [f'{label}: docstring']
    if inspect.isclass(symbol):
        init = vars(symbol).get('__init__')
        if hasattr(symbol, '__dataclass_fields__'): return missing + parameters(symbol, label)
        if inspect.isfunction(init): missing += parameters(init, label)
        inherited = {n for base in symbol.__mro__[1:] for n in vars(base)}
        own_methods = {n: m for n, m in vars(symbol).items() if inspect.isfunction(m) and n[0] != '_' and n not in inherited}
        written_here = {n: m for n, m in own_methods.items() if m.__module__ == symbol.__module__}
        return missing + [f'{label}.{n}: docstring' for n, m in written_here.items() if needs_words(m)]
    return missing + parameters(symbol, label)


def needs_words(method):
    "Whether `method` has no docstring though it is more than a line that says itself what it does"
    return not method.__doc__ and inspect.getsource(method).strip().count('\n') > 0


def parameters(function, label):
    "The parameters of `function` without a comment; typer's `help` counts as one"
    try: comments = docments(function)
    except ValueError as e: return [f'{label}: fastcore cannot read its parameters (is an array a default?): {e}']
    def has_help(p): return any(getattr(o, 'help', None) for o in (p.default, *getattr(p.annotation, '__metadata__', ())))
    signature = inspect.signature(function, follow_wrapped=True).parameters
    named = [p for n, p in signature.items() if n not in ('self', 'cls') and n[0] != '_' and p.kind not in (p.VAR_KEYWORD,)]
    return [f'{label}({p.name})' for p in named if not comments.get(p.name) and not has_help(p)]


def test_undocumented_finds_gaps():
    def good(
        hu, # HU, (..., H, W)
        *rest, # More of them
        **kwargs
    ): "Say `hu`"
    def bad(
        hu, # HU
        size=1
    ): pass
    assert undocumented(good) == []
    assert undocumented(bad) == ['bad: docstring', 'bad(size)']


@each_module
def test_public_functions_are_documented(module):
    loaded = importlib.import_module(f'rsna_ich.{module}')
    public = [getattr(loaded, n) for n in loaded.__all__ if hasattr(loaded, n)]
    symbols = [s for s in public if (inspect.isfunction(s) or inspect.isclass(s)) and s.__module__ == loaded.__name__]
    gaps = [gap for s in symbols for gap in undocumented(s)]
    assert not gaps, '\n' + '\n'.join(gaps)


def test_readme_is_in_step_with_its_notebook():
    from build_readme import readme
    text, pictures = readme()
    assert (ROOT/'README.md').read_text(encoding='utf-8') == text, 'run `make readme`'
    assert {p: (ROOT/p).read_bytes() for p in pictures} == pictures, 'run `make readme`'


def test_readme_is_finished():
    "It has its picture, which is there, and no place is left to fill in"
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    pictures = re.findall(r'!\[[^]]*\]\(([^)]+)\)', text)
    assert pictures and all((ROOT/p).exists() for p in pictures)
    assert 'LEAD:' not in text
