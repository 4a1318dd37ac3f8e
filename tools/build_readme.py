"Write README.md from nbs/index.ipynb: its prose, its visible code and its outputs, as GitHub shows them"
import base64
import json
import posixpath
import re
import tomllib
from pathlib import Path

from nbdev.config import nbpath2html

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT/'nbs/index.ipynb'
NOTICE = '<!-- Written by `make readme` from nbs/index.ipynb: edit that, not this. -->'
LINK = re.compile(r'(\]\()(?!https?:|mailto:|#|/)([^)\s]+)')
PICTURE_TYPES = {'image/png': 'png', 'image/jpeg': 'jpg'}


def links_from_the_root(
    text, # Markdown of a notebook in nbs/
    site  # Address of the documentation site, ending in /
): # The same Markdown for a file in the repository's root
    "Point links to notebooks at the site, and links to other files at where they lie"
    def target(m):
        path, anchor = (m[2].split('#', 1) + [''])[:2]
        if not path.endswith('.ipynb'): return m[1] + posixpath.normpath(f'nbs/{m[2]}')
        return f'{m[1]}{site}{nbpath2html(Path(path)).as_posix()}' + (f'#{anchor}' if anchor else '')
    return LINK.sub(target, text)


def indented(text): return '\n'.join(f'    {line}' for line in text.rstrip().splitlines())


def output_markdown(
    output, # One output of a notebook's cell
    pictures # Path from the root to bytes: a picture among the outputs is added
): # Markdown, or '' where there is nothing to show
    "One output as Markdown: the richest form that GitHub shows"
    if output['output_type'] == 'stream': return indented(''.join(output['text'])) if output['name'] == 'stdout' else ''
    data = {kind: ''.join(value) for kind, value in output.get('data', {}).items() if isinstance(value, (str, list))}
    if 'text/markdown' in data: return data['text/markdown']
    for kind in PICTURE_TYPES.keys() & data.keys():
        path = f'index_files/figure-{len(pictures)+1}.{PICTURE_TYPES[kind]}'
        pictures[path] = base64.b64decode(data[kind])
        return f'![]({path})'
    if 'text/html' in data: return re.sub(r'<style.*?</style>\s*', '', data['text/html'], flags=re.S)
    return indented(data.get('text/plain', ''))


def readme(): # The text of README.md, and a dict of the pictures that it shows: path from the root to bytes
    "README.md as it should be; writes nothing"
    config = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))
    site = config['project']['urls']['Documentation'].rstrip('/') + '/'
    parts, pictures = [], {}
    for cell in json.loads(INDEX.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source']).strip()
        directives = dict(re.findall(r'^#\|\s*(\w+):?[ \t]*(.*)$', source, re.M)) if cell['cell_type'] == 'code' else {}
        code = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
        if cell['cell_type'] == 'markdown': parts.append(links_from_the_root(source, site))
        hidden = directives.keys() & {'hide', 'export'} or directives.get('include') == 'false'
        if cell['cell_type'] != 'code' or hidden: continue
        if code and directives.get('echo') != 'false': parts.append(f'```python\n{code}\n```')
        parts += [output_markdown(o, pictures) for o in cell['outputs']]
    title, *rest = [p for p in parts if p]
    return '\n\n'.join([title, NOTICE, *rest]) + '\n', pictures


def main():
    text, pictures = readme()
    (ROOT/'README.md').write_text(text, encoding='utf-8')
    for path, picture in pictures.items():
        (ROOT/path).parent.mkdir(exist_ok=True)
        (ROOT/path).write_bytes(picture)
    print('README.md' + (f' and {len(pictures)} pictures' if pictures else ''))


if __name__ == '__main__': main()
