"""`python tests/tally.py odd.json`: how often each test of odd inputs, hostile bundles and published faults was tried, and passed

The table in `nbs/benchmarks/04_hostile.ipynb` is made from it."""
import ast
import collections
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

HERE = Path(__file__).parent
FILES = 'test_odd', 'test_bundle_hostile', 'test_cves'


def what_it_is(name):
    "The first line of each test's docstring in a file"
    tests = [o for o in ast.parse((HERE/f'{name}.py').read_text()).body if isinstance(o, ast.FunctionDef) and o.name.startswith('test_')]
    return {o.name: (ast.get_docstring(o) or o.name.removeprefix('test_').replace('_', ' ')).splitlines()[0] for o in tests}


def counted(name):
    "{test: counts} of one file"
    with tempfile.TemporaryDirectory() as d:
        report = Path(d)/'report.xml'
        subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={report}', str(HERE/f'{name}.py')], stdout=sys.stderr)
        cases = xml.parse(report).getroot().iter('testcase')
    found = collections.defaultdict(collections.Counter)
    for case in cases:
        bad = next((o.tag for o in case if o.tag in ('failure', 'error', 'skipped')), 'passed')
        found[case.get('name').partition('[')[0]][bad] += 1
    return found


def main():
    rows = []
    for name in FILES:
        found, about = counted(name), what_it_is(name)
        for test, counts in found.items():
            tried = sum(counts.values()) - counts['skipped']
            rows.append(dict(file=name, test=test, about=about.get(test, ''), tried=tried, survived=counts['passed'], lost=tried - counts['passed']))
    Path(sys.argv[1]).write_text('[\n' + ',\n'.join(f' {json.dumps(o, ensure_ascii=False)}' for o in rows) + '\n]\n')


if __name__ == '__main__': main()
