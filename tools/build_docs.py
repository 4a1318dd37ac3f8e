"""Build the documentation site into docs/ (or a folder that is named) from the notebooks, without Quarto

nbdev's own processors turn notebooks into pages (`show_doc` for each export, links from names in backticks, hidden cells
left out), and smalldocs, which reads nbdev's `_quarto.yml`, turns those into HTML. What is changed in between: no notebook
is executed, the pages have the names that nbdev gives them, and the result loads nothing from elsewhere, works from the file
system and is the same bytes each time."""
import base64
import hashlib
import html
import importlib
import inspect
import io
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import yaml
from fastcore.nbio import write_nb
from latex2mathml.converter import convert
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor, Processor
from nbdev.processors import FilterDefaults, exec_show_docs
from nbdev.quarto import refresh_quarto_yml
from PIL import Image
from smalldocs.site import build

CONFIG = get_config(Path(__file__).resolve().parent.parent)
ROOT, NBS, LIB = CONFIG.config_path, CONFIG.nbs_path, CONFIG.lib_path.name
SITE = f'{CONFIG.doc_host}{CONFIG.doc_baseurl.rstrip("/")}/'
SOURCE = f'{CONFIG.git_url}/blob/{CONFIG.branch}/'
# The sidebar's sections: a folder of notebooks each; '.' is the root
SECTIONS = {'Tutorials': 'tutorials', 'Root': '.', 'Data': 'data', 'Simulated patients': 'simulate', 'Models': 'model', 'Learning': 'learn',
            'Prediction': 'predict', 'Judging': 'judge', 'Applications': 'apps', 'Benchmarks': 'benchmarks', 'History': 'history'}
# Asset of smalldocs and what replaces it: `fetch` of a file is forbidden to a page that is itself opened as a file
FETCHED_INDEX = '''const r = await fetch(offset + "search.json");
      index = await r.json();'''
LOADED_INDEX = '''await new Promise((loaded, failed) => {
        const script = Object.assign(document.createElement("script"), { src: offset + "search.js", onload: loaded, onerror: failed });
        document.head.append(script);
      });
      index = window.searchIndex;'''
PROBLEMS = []  # What stands in the way of docs/; a preview in another folder is built all the same
MATHS = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
KATEX = re.compile(r'<(?:link|script)\b[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(?:</script>)?')
FIGURE = re.compile('data:image/png;base64,([A-Za-z0-9+/=]+)')
# A line of the sidebar: its wrappers, on every page for every page, would be half a megabyte
SIDEBAR_LINE = re.compile(r'<div class="sidebar-item-container">(<a href=[^>]*>)<span class="menu-text">([^<]*)</span></a></div>')
# Operators and numbers in code: their wrappers, .9 megabytes, would give them a colour that hardly differs
OPERATOR = re.compile(r'<span class="(?:op|dv|fl|bu)">([^<]*)</span>')
# All other colours of code: fifty thousand wrappers, which are shorter so
COLOURED = re.compile(r'<span class="(kw|cf|st|ch|ss|co|do|fu|im|bn|dt|er|pp|at|cn|va|sc)">([^<]*)</span>')
COLOUR_RULE = re.compile(r'code span\.(kw|cf|st|ch|ss|co|do|fu|im|bn|dt|er|pp|at|cn|va|sc)\b')
ICON_RULE = re.compile(r'\.(bi-[\w-]+)::before\s*\{[^}]*\}')
OLD_FONT = re.compile(r',\s*url\([^)]*\.woff\?[^)]*\)\s*format\("woff"\)')  # beside woff2, which every browser of today reads
SEARCHED = 170  # letters of each section that the search knows
WEBP_QUALITY = 50  # of 100: letters and the grain of a CT stay legible
FIGURE_WIDTH = 760  # pixels at most; a page's text is about 800 wide
ADDRESS = '"(?:https?:)?//[^"]*"'
ELSEWHERE = re.compile(rf'<(?:script|img|iframe|source|video|audio)\b[^>]*\ssrc={ADDRESS}|<link\b[^>]*\shref={ADDRESS}')


def page_name(path): return Path(nbpath2html(Path(path))).with_suffix(Path(path).suffix).as_posix()


def manifest(): # Path in nbs/ to a hash
    "What the site is made of: each notebook's cells with the outputs that it shows, and the site's configuration"
    def digest(data): return hashlib.sha256(data).hexdigest()[:16]
    def cells(path):
        found = json.loads(path.read_text(encoding='utf-8'))['cells']
        shown = [(c['cell_type'], ''.join(c['source']), c.get('outputs', [])) for c in found]
        return json.dumps(shown, sort_keys=True).encode()
    notebooks = {p.relative_to(NBS).as_posix(): digest(cells(p)) for p in sorted(nbglob(NBS, as_path=True))}
    return notebooks | {name: digest((NBS/name).read_bytes()) for name in ('_quarto.yml', 'sidebar.yml', 'styles.css')}


def sidebar(): # What nbs/sidebar.yml says
    "The notebooks, wing by wing"
    notebooks = sorted(p.relative_to(NBS) for p in nbglob(NBS, as_path=True))
    contents = ['index.ipynb']
    for section, folder in SECTIONS.items():
        pages = [p.as_posix() for p in notebooks if p.parent == Path(folder) and p.name != 'index.ipynb']
        if pages: contents.append({'section': section, 'contents': pages})
    config = {'website': {'sidebar': {'contents': contents}}}
    return '# Written by tools/build_docs.py: sections are set there\n' + yaml.safe_dump(config, sort_keys=False)


class ShowDocs(Processor):
    "`show_doc` of what the notebook exports, from its module: no cell has to be run again"
    def begin(self):
        from nbdev.showdoc import show_doc
        directives = [getattr(c, 'directives_', {}) for c in self.nb.cells]
        module = next((d['default_exp'] for d in directives if 'default_exp' in d), None)
        exported = vars(importlib.import_module(f'{LIB}.{module}')) if module else {}
        self.names = {**exported, 'show_doc': show_doc}

    def cell(self, cell):
        if cell.cell_type != 'code' or not re.search(r'^show_doc\(', cell.source, re.M): return
        try: shown = eval(cell.source.strip(), dict(self.names))  # `show_doc(name)`, which nbdev put there
        except NameError as e:
            name = re.search(r'^show_doc\((\w+)', cell.source, re.M)[1]
            cell.source = ''
            if name not in self.names: return PROBLEMS.append(f'{e}: notebook and module are out of step, run `make export` first')
            # Its signature is inherited from a library that names types it does not import at run time
            entry = f'### {name}\n\n*{inspect.getdoc(self.names[name])}*'
            cell.outputs = [dict(output_type='display_data', metadata={}, data={'text/markdown': entry})]
            return
        try: line = f'#L{inspect.getsourcelines(inspect.unwrap(shown.sym))[1]}'
        except (OSError, TypeError): line = ''
        # nbdev 3.3 looks the line up under the wrong name
        markdown = shown._repr_markdown_().replace('#LNone', line)
        markdown = re.sub(r'<function (\S+) at 0x\w+>', r'\1', markdown)  # A default's address differs in each process
        cell.outputs = [dict(output_type='display_data', metadata={}, data={'text/markdown': markdown})]


class DocsProcs(FilterDefaults):
    "nbdev's processors for the site, with `ShowDocs` in place of executing notebooks"
    def base_procs(self): return [ShowDocs if p is exec_show_docs else p for p in super().base_procs()]


def local_links(
    text, # Markdown of a page
    depth # How many folders deep the page lies
): # The same with links that work inside the site
    "Links to notebooks by their page's name, inside the site relatively, to the repository's other files at their source"
    text = re.sub(r'\[(`_\w+`)\]\(' + re.escape(SITE) + r'[^)]*\)', r'\1', text)  # A private name has no entry to link to
    text = text.replace(SITE, '../'*depth)
    text = re.sub(r'(\]\()(?!https?:)([^)#\s]+\.ipynb)', lambda m: m[1] + page_name(m[2]), text)
    return re.sub(r'(\]\()' + r'\.\./'*(depth+1) + r'(?!\.\./)', rf'\1{SOURCE}', text)


def as_webp(
    png # A figure as base64
): # The same as WebP and no wider than is shown, a tenth of the bytes
    "Figures of the site: what a notebook keeps stays as it is"
    with Image.open(io.BytesIO(base64.b64decode(png))) as im:
        whole = Image.new('RGB', im.size, 'white')
        whole.paste(im.convert('RGB'), mask=im.getchannel('A') if im.mode == 'RGBA' else None)
    if whole.width > FIGURE_WIDTH: whole = whole.resize((FIGURE_WIDTH, round(whole.height*FIGURE_WIDTH/whole.width)), Image.Resampling.LANCZOS)
    small = io.BytesIO()
    whole.save(small, 'WEBP', quality=WEBP_QUALITY, method=6)
    return base64.b64encode(small.getvalue()).decode()


def small_figures(
    page # HTML of a page
): # The same with its figures as WebP
    "smalldocs puts figures into the page as PNG"
    return FIGURE.sub(lambda m: f'data:image/webp;base64,{as_webp(m[1])}', page)


def stage_notebook(
    path, # The notebook
    stage # Folder of the pages' sources
):
    "Process one notebook into `stage`, under its page's name"
    relative = path.relative_to(NBS)
    processor = NBProcessor(path, procs=DocsProcs().procs(), rm_directives='quarto')
    processor.process()
    for cell in processor.nb.cells:
        if cell.cell_type == 'raw': cell.source = re.sub(r'^output-file:.*\n', '', cell.source, flags=re.M)
        if cell.cell_type == 'markdown': cell.source = local_links(cell.source, len(relative.parts)-1)
        for data in (o['data'] for o in cell.get('outputs', []) if 'data' in o):
            if 'text/markdown' in data: data['text/markdown'] = local_links(''.join(data['text/markdown']), len(relative.parts)-1)
    target = stage/page_name(relative)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_nb(processor.nb, target)


def renamed(tree):
    "`tree` of YAML with notebooks by their page's name"
    if isinstance(tree, dict): return {k: renamed(v) for k, v in tree.items()}
    if isinstance(tree, list): return [renamed(v) for v in tree]
    return page_name(tree) if isinstance(tree, str) and tree.endswith('.ipynb') else tree


def stage_config(
    stage # Folder of the pages' sources
):
    "nbdev's configuration for Quarto as smalldocs reads it; an address would make a sitemap, whose dates change each time"
    for name in '_quarto.yml', 'nbdev.yml', 'sidebar.yml':
        config = renamed(yaml.safe_load((NBS/name).read_text(encoding='utf-8')))
        config.get('website', {}).pop('site-url', None)
        config.get('project', {})['output-dir'] = '_site'
        config.pop('format-links', None)
        (stage/name).write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')


class Anchors(HTMLParser):
    "The ids and the links of a page"
    def __init__(self,
        page # An HTML file
    ):
        super().__init__()
        self.ids, self.links = {''}, []
        self.feed(page.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ('id', 'name') if attrs.get(k)}
        if tag == 'a' and attrs.get('href'): self.links.append(attrs['href'])


def dead_links(
    site # Folder of the site
): # Lines `page: link`
    "Links inside the site to a page, a file or a heading that is not there"
    pages = {p.resolve(): Anchors(p) for p in sorted(site.rglob('*.html'))}
    def dead(page, link):
        path, _, anchor = link.partition('#')
        target = (page.parent/unquote(path)).resolve() if path else page
        if target.is_dir(): target = target/'index.html'
        return not target.exists() or (target in pages and unquote(anchor) not in pages[target].ids)
    links = ((page, link) for page, anchors in pages.items() for link in anchors.links if not re.match(r'[a-z]+:|//', link))
    return [f'{page.relative_to(site.resolve())}: {link}' for page, link in links if dead(page, link)]


def mathml(
    page # HTML of a page
): # The same with formulas as MathML, which browsers show by themselves
    "TeX to MathML, in place of a script from elsewhere"
    def formula(m): return convert(html.unescape(m[2]), display='block' if m[1] == 'display' else 'inline')
    return MATHS.sub(formula, KATEX.sub('', page))


def from_elsewhere(
    site # Folder of the site
): # Lines `page: tag`
    "What pages load from another address"
    pages = {p: p.read_text(encoding='utf-8') for p in sorted(site.rglob('*.html'))}
    return [f'{p.relative_to(site)}: {m[0]}' for p, text in pages.items() for m in ELSEWHERE.finditer(text)]


def lighter_code(
    text # HTML of a page
): # The same with short wrappers round what is coloured
    "Code in fewer bytes"
    return COLOURED.sub(r'<i class=\1>\2</i>', OPERATOR.sub(r'\1', text))


def lighter_styles(
    site # Folder of the site
):
    "Rules for code as `lighter_code` has it, and for the icons that the site shows"
    sheet = site/'site_libs/smalldocs.css'
    text = sheet.read_text(encoding='utf-8')
    if not COLOUR_RULE.search(text): raise SystemExit('smalldocs colours code in another way than the version that is pinned')
    sheet.write_text('code i { font-style: normal; }\n' + COLOUR_RULE.sub(r'code i.\1', text), encoding='utf-8')
    icons = site/'site_libs/bootstrap-icons/bootstrap-icons.min.css'
    others = (p for p in site.rglob('*') if p.suffix in ('.html', '.js', '.css') and p != icons)
    used = {name for p in others for name in re.findall(r'\bbi-[\w-]+', p.read_text(encoding='utf-8'))}
    kept = ICON_RULE.sub(lambda m: m[0] if m[1] in used else '', icons.read_text(encoding='utf-8'))
    icons.write_text(kept, encoding='utf-8')


def self_contained(
    site # Folder of the site
):
    "Make search work from the file system, and see to it that no page loads anything from elsewhere"
    script = site/'site_libs/smalldocs.js'
    text = script.read_text(encoding='utf-8')
    if FETCHED_INDEX not in text:
        raise SystemExit('smalldocs loads its search index in another way than the version that is pinned')
    script.write_text(text.replace(FETCHED_INDEX, LOADED_INDEX), encoding='utf-8')
    entries = json.loads((site/'search.json').read_text(encoding='utf-8'))
    index = json.dumps([entry | dict(text=entry['text'][:SEARCHED]) for entry in entries], ensure_ascii=False)
    (site/'search.js').write_text(f'window.searchIndex = {index};\n', encoding='utf-8')
    (site/'search.json').unlink()
    (site/'.nojekyll').touch()
    for sheet in site.rglob('*.css'):  # The themes fetch their fonts; without, the reader's own are used
        text = sheet.read_text(encoding='utf-8')
        kept = OLD_FONT.sub('', re.sub(r'@import\s+url\([^)]*\)\s*;', '', text))
        if kept != text: sheet.write_text(kept, encoding='utf-8')
    for font in site.rglob('*.woff'): font.unlink()
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        made = lighter_code(SIDEBAR_LINE.sub(r'\1\2</a>', small_figures(mathml(text))))
        if made != text: page.write_text(made, encoding='utf-8')
    lighter_styles(site)
    if loaded := from_elsewhere(site): raise SystemExit('These pages load something from elsewhere:\n' + '\n'.join(loaded))


def write_pointers(site):
    "`PAGE.html.md` beside each page: nbdev's module docstrings point to it. Title and subtitle in Markdown, and where to read on"
    for path in sorted(nbglob(NBS, as_path=True)):
        name = path.relative_to(NBS)
        page = Path(page_name(name)).with_suffix('.html').as_posix()
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        title = next(text for c in cells if c['cell_type'] == 'markdown' and (text := ''.join(c['source'])).startswith('# '))
        head = [line for line in title.splitlines() if line.startswith(('# ', '> '))]
        links = [f'[The page]({SITE}{page})', f'[its notebook]({SOURCE}{NBS.name}/{name.as_posix()})']
        (site/f'{page}.md').write_text('\n\n'.join([*head, ', '.join(links)]) + '\n', encoding='utf-8')


def main(docs=ROOT/'docs'):
    os.environ['IN_TEST'] = '1'  # As nbdev does: a notebook's own `nbdev_export()` has no effect
    os.chdir(ROOT)
    stage = ROOT/'_stage' if docs == ROOT/'docs' else docs.with_name(f'{docs.name}.stage')
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(NBS, stage, ignore=shutil.ignore_patterns('*.ipynb', '.*', '_proc', '__pycache__'))
    refresh_quarto_yml()
    (NBS/'sidebar.yml').write_text(sidebar(), encoding='utf-8')
    for path in sorted(nbglob(NBS, as_path=True)): stage_notebook(path, stage)
    stage_config(stage)
    built = build(stage, quiet=True)
    for warning in built.warnings: print(f'warning: {warning}')
    self_contained(stage/'_site')
    write_pointers(stage/'_site')
    (stage/'_site/manifest.json').write_text(json.dumps(manifest(), indent=1) + '\n', encoding='utf-8')
    PROBLEMS.extend(f'dead link on {line}' for line in dead_links(stage/'_site'))
    for problem in PROBLEMS: print(problem)
    if PROBLEMS and docs == ROOT/'docs': raise SystemExit('docs/ is left as it was')
    shutil.rmtree(docs, ignore_errors=True)
    (stage/'_site').rename(docs)
    shutil.rmtree(stage, ignore_errors=True)
    size = sum(p.stat().st_size for p in docs.rglob('*') if p.is_file())
    print(f'{docs.name}/index.html and {len(built.pages)-1} more pages, {size/1e6:.1f} MB')


if __name__ == '__main__': main(*(Path(o).resolve() for o in sys.argv[1:2]))
