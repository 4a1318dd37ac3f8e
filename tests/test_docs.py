"The committed site: in step with the notebooks, whole, small, and on its own"
import ast
import base64
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from build_docs import SITE, Anchors, dead_links, from_elsewhere, manifest, page_name, sidebar, small_figures
from nbdev.doclinks import nbglob
from PIL import Image
from rsna_ich import cli
from test_house import default_exp

ROOT = Path(__file__).resolve().parent.parent
NBS, DOCS = ROOT/'nbs', ROOT/'docs'
# A page may have another name than its module
EXPORTS = [(p, m) for p in sorted(nbglob(NBS, as_path=True)) if (m := default_exp(p))]
LARGEST_SITE = 12e6  # bytes


def test_site_is_in_step_with_the_notebooks():
    built = json.loads((DOCS/'manifest.json').read_text(encoding='utf-8')) if (DOCS/'manifest.json').exists() else {}
    now = manifest()
    changed = sorted(name for name in built.keys() | now.keys() if built.get(name) != now.get(name))
    assert changed == [], 'run `make docs`'


def test_manifest_sees_a_change(tmp_path, monkeypatch):
    import build_docs
    for name in '_quarto.yml', 'sidebar.yml', 'styles.css': (tmp_path/name).write_text('')
    nb = json.loads((NBS/'00_core.ipynb').read_text(encoding='utf-8'))
    monkeypatch.setattr(build_docs, 'NBS', tmp_path)
    def written():
        (tmp_path/'00_core.ipynb').write_text(json.dumps(nb))
        return manifest()['00_core.ipynb']
    before = written()
    nb['metadata']['whatever'] = 1
    assert written() == before
    nb['cells'][1]['source'] = ['# Another title']
    assert written() != before


def test_every_notebook_has_its_page_and_its_place_in_the_sidebar():
    notebooks = [p.relative_to(NBS) for p in nbglob(NBS, as_path=True)]
    missing = [p.as_posix() for p in notebooks if not (DOCS/page_name(p)).with_suffix('.html').exists()]
    assert missing == []
    assert sidebar() == (NBS/'sidebar.yml').read_text(encoding='utf-8')
    assert [p.as_posix() for p in notebooks if p.as_posix() not in sidebar()] == []


@pytest.mark.parametrize('notebook,module', EXPORTS, ids=[m for _, m in EXPORTS])
def test_a_module_docstring_leads_somewhere(notebook, module):
    source = (ROOT/'rsna_ich'/Path(*module.split('.'))).with_suffix('.py').read_text(encoding='utf-8')
    address = re.search(r'^Docs: (\S+?)"*$', source, re.M)[1]
    assert address.startswith(SITE)
    pointer = (DOCS/address.removeprefix(SITE)).read_text(encoding='utf-8')
    assert pointer.startswith('# ') and f'{SITE}{Path(page_name(notebook.relative_to(NBS))).with_suffix(".html")}' in pointer


def test_site_is_small(): assert sum(p.stat().st_size for p in DOCS.rglob('*') if p.is_file()) < LARGEST_SITE


def test_figures_are_small_and_legible():
    "WebP in place of PNG: the same size in pixels, near the same grey, a transparent ground turned white"
    rng = np.random.default_rng(0)
    grey = np.clip(np.add.outer(np.arange(200), np.arange(300))/2 + rng.normal(0, 5, (200, 300)), 0, 255).astype('uint8')
    alpha = np.full_like(grey, 255)
    alpha[:40, :40] = 0
    def base64_of(picture, kind):
        file = io.BytesIO()
        picture.save(file, kind)
        return base64.b64encode(file.getvalue()).decode()
    png = base64_of(Image.fromarray(np.dstack([grey, grey, grey, alpha])), 'PNG')
    page = small_figures(f'<p>x</p><img src="data:image/png;base64,{png}" class="img-fluid">')
    kind, data = re.search('data:image/(\\w+);base64,([^"]+)', page).groups()
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('L'), float)
    assert kind == 'webp' and len(data) < len(png)/2 and page.startswith('<p>x</p>')
    assert seen.shape == grey.shape and seen[:32, :32].min() > 250
    assert abs(seen - grey)[48:, 48:].mean() < 4


def test_nothing_is_loaded_from_elsewhere():
    assert from_elsewhere(DOCS) == []
    sheets = {p.name: p.read_text(encoding='utf-8') for p in DOCS.rglob('*.css')}
    assert [name for name, text in sheets.items() if 'url(http' in text or '@import' in text] == []


def test_no_dead_link(): assert dead_links(DOCS) == []


def test_what_is_wrong_with_a_page_is_seen(tmp_path):
    link = '<img src="https://elsewhere.example/x.png"'
    page = f'<h2 id="here">A heading</h2><a href="#here">good</a><a href="#gone">bad</a><a href="gone.html">bad</a>{link}>'
    (tmp_path/'page.html').write_text(page)
    assert sorted(dead_links(tmp_path)) == ['page.html: #gone', 'page.html: gone.html']
    assert from_elsewhere(tmp_path) == [f'page.html: {link}']


def public_names(module):
    "Functions and classes in a module's `__all__`"
    tree = ast.parse((ROOT/f'rsna_ich/{module.replace(".", "/")}.py').read_text(encoding='utf-8'))
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__']
    exported = ast.literal_eval(lists[0]) if lists else []
    return [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in exported]


@pytest.mark.parametrize('notebook,module', EXPORTS, ids=[m for _, m in EXPORTS])
def test_every_public_name_has_its_entry_with_a_source_link(notebook, module):
    page = (DOCS/page_name(notebook.relative_to(NBS))).with_suffix('.html')
    ids = {i.lower() for i in Anchors(page).ids}
    names = public_names(module)
    assert [n for n in names if n.lower() not in ids] == []
    assert not names or f'rsna_ich/{module.replace(".", "/")}.py#L' in page.read_text(encoding='utf-8')


def written_commands():
    "Where it is written, and the arguments, of every `ich` in the shell blocks of README and notebooks"
    texts = {'README.md': (ROOT/'README.md').read_text(encoding='utf-8')}
    for path in sorted(nbglob(NBS, as_path=True)):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        texts[path.name] = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    for name, text in texts.items():
        for block in re.findall(r'```sh\n(.*?)```', text, re.S):
            for args in re.findall(r'^(?:\.venv/bin/)?ich (.*)$', block, re.M): yield name, shlex.split(args, comments=True)


def parse(args):
    "As the command line does, without running anything; raises what is wrong with them"
    command = typer.main.get_command(cli.app)
    context = command.context_class(command, info_name='ich')
    while hasattr(command, 'resolve_command'):
        name, command, args = command.resolve_command(context, args)
        context = command.context_class(command, info_name=name, parent=context)
    command.make_context(command.name, list(args))


def test_written_commands_are_understood():
    written, wrong = list(written_commands()), []
    for name, args in written:
        try: parse(args)
        except Exception as e: wrong.append(f'{name}: ich {shlex.join(args)}: {e}')
    assert wrong == []
    assert len(written) > 30
    with pytest.raises(Exception, match='unexpected extra argument'): parse(['kaggle', 'build', 'kernel'])
