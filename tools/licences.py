"""List the licence of every package that rsna_ich needs, from what is installed here

`python tools/licences.py` lists what the package itself needs, `--extra NAME` what an extra adds, `--all` everything.
Its exit status is 1 where a licence forbids commercial use, passes its own terms on to this package (GPL, AGPL), or is not known."""
import argparse
import re
import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What nobody may need: licences against commercial use, and licences that would pass to what uses them. LGPL and MPL do not.
FORBIDDEN = re.compile(r'(?<!L)\bA?GPL|(?<!LESSER )GENERAL PUBLIC|AFFERO|NON-?COMMERCIAL|\bCC-BY-NC|\bNC\b', re.I)
# NVIDIA's own terms: no open source, but use and redistribution as part of an application are allowed, commercial ones too
CUDA = re.compile(r'^(nvidia|cuda)-')
CUDA_TERMS = "NVIDIA's own terms (proprietary; commercial use allowed)"
# Said by the package's own files where its metadata says nothing that can be read, or gives a choice
READ = {
    'text-unidecode': 'Artistic License (chosen; GPL is the alternative)',
    'cuda-pathfinder': 'Apache-2.0',
}


def licence(dist): # Its licence in a few words, '' where the metadata says nothing
    "What the metadata of `dist` says: expression, classifiers, the first line of the free text or of its licence's file"
    meta = dist.metadata
    name = canonicalize_name(meta['Name'])
    if name in READ: return READ[name]
    if CUDA.match(name): return CUDA_TERMS
    if meta.get('License-Expression'): return meta['License-Expression']
    classifiers = [c.split(' :: ') for c in meta.get_all('Classifier', [])]
    classified = [c[-1] for c in classifiers if c[0] == 'License' and c[-1] != 'OSI Approved']
    if classified: return ', '.join(classified)
    files = [p for p in dist.files or [] if re.match(r'(LICEN[CS]E|COPYING)', p.name, re.I)]
    there = [p.locate() for p in files if p.locate().is_file()]
    texts = [meta.get('License') or '', *(p.read_text(encoding='utf-8', errors='replace') for p in there)]
    lines = (line.strip() for text in texts for line in text.splitlines())
    return next((line[:80] for line in lines if line and line != 'UNKNOWN'), '')


def needed(extras=()): # Canonical names, without rsna_ich itself
    "Everything that rsna_ich with `extras` needs on this platform, directly or not, as far as it is installed"
    found, todo = set(), [('rsna-ich', tuple(extras))]
    while todo:
        name, wanted = todo.pop()
        try: requirements = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError: continue
        for requirement in map(Requirement, requirements):
            applies = requirement.marker is None or any(requirement.marker.evaluate({'extra': e}) for e in ('', *wanted))
            key = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
            if applies and key not in found:
                found.add(key)
                todo.append(key)
    return sorted({name for name, _ in found})


def table(extras=()): # Of (name, version, licence); version '' where it is not installed
    "One row a package"
    rows = []
    for name in needed(extras):
        try: dist = metadata.distribution(name)
        except metadata.PackageNotFoundError: rows.append((name, '', ''))
        else: rows.append((name, dist.version, licence(dist)))
    return rows


def problems(rows): # Lines
    "Installed packages whose licence is not known, or is one that nobody may need"
    unknown = [f'{n} {v}: its metadata names no licence' for n, v, text in rows if v and not text]
    return unknown + [f'{n} {v}: {text}' for n, v, text in rows if FORBIDDEN.search(text) and n not in READ]


def main():
    parser = argparse.ArgumentParser(description='Licences of what rsna_ich needs')
    parser.add_argument('--extra', action='append', default=[], help='an extra of rsna_ich too, e.g. kaggle')
    parser.add_argument('--all', action='store_true', help='all extras')
    args = parser.parse_args()
    rows = table(metadata.metadata('rsna-ich').get_all('Provides-Extra', []) if args.all else args.extra)
    width = max(len(n) for n, *_ in rows)
    for name, version, text in rows: print(f'{name:{width}}  {version or "not installed":14}  {text or "unknown"}')
    if wrong := problems(rows): sys.exit('\n'.join(['', 'Look at these:', *wrong]))


if __name__ == '__main__': main()
