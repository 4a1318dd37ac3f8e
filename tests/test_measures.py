"tools/measures.py counts right, on a notebook made up for it"
import ast
import json

import pytest
from measures import Measures, bindings, measure, measure_code, table, tuple_assignments


IMPORTS = '#| export\nimport json\nfrom pathlib import Path'
FUNCTION = '''#| export
def double(
    x # A number
):
    "Twice `x`"
    # why
    y = x*2

    return y'''
DENSE = '''#| export
def pairs(items): return [o for o in items]
a,b = 1,2
a,b = b,a
(first, second) = pair = f()
c,d = f(),g()
def g(o): pass'''
EXAMPLE = '%matplotlib inline\n!ls\np,q = 1,2\nfor o in range(3): print(o)'
PROSE = '# Title\n\n> four words of subtitle'


@pytest.fixture
def nbs(tmp_path):
    def cell(kind, source): return dict(cell_type=kind, source=source.splitlines(True), metadata={})
    def write(path, *cells):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(cells=[cell(*c) for c in cells])))
    write(tmp_path/'00_a.ipynb', ('markdown', PROSE), ('code', IMPORTS), ('code', FUNCTION), ('code', EXAMPLE))
    write(tmp_path/'data'/'01_b.ipynb', ('markdown', PROSE), ('code', DENSE), ('raw', 'nothing to count'))
    write(tmp_path/'data'/'02_c.ipynb', ('code', '#| exporti\n' + '\n'.join(f'x{i} = {i}' for i in range(41))))
    write(tmp_path/'_proc'/'00_a.ipynb', ('markdown', PROSE))
    return tmp_path


def test_counts_of_folders(nbs):
    found = measure(nbs)
    assert list(found) == ['root', 'data', 'all']
    root, data = found['root'].row(), found['data'].row()
    assert (root['notebooks'], root['words'], root['exported cells'], root['median lines']) == (1, 7, 1, 7)
    assert (data['notebooks'], data['exported cells'], data['median lines'], data['over 40']) == (2, 2, 23.5, 1)
    assert (root['tuple = tuple'], root['bindings of o']) == (0, 0), 'examples are not counted'
    assert found['all'] == found['root'] + found['data'] + Measures()


def test_tuple_on_both_sides():
    assert tuple_assignments(ast.parse(DENSE)) == 2, 'a swap and an unpacking are neither'
    assert tuple_assignments(ast.parse('x[0],x[1] = x[1],x[0]\n(a,b),c = (1,2),3')) == 1


def test_bindings():
    assert bindings(ast.parse(DENSE)) == 2
    assert bindings(ast.parse('with f() as o: g(o)\nh = lambda o: o.o\no += 1')) == 3


def test_nodes_a_line():
    found = measure_code(FUNCTION)
    # y = x*2: Assign, Name, Store, BinOp, Name, Load, Mult, Constant; return y: Return, Name, Load
    assert (found.nodes, found.lines) == (11, 2)
    assert measure_code('#| export\nclass A:\n    def f(self): return 1').nodes == 2
    assert measure_code('#| export\ndef f(): "Says nothing"').lines == 0


def test_large_and_long_notebooks(nbs):
    long = '#| export\n' + '\n'.join(f'x{i} = {i}' for i in range(351))
    notebook = dict(cells=[dict(cell_type='code', source=long, outputs=['x'*1_000_001])])
    (nbs/'data'/'03_d.ipynb').write_text(json.dumps(notebook))
    row = measure(nbs)['data'].row()
    assert (row['over 1 MB'], row['over 350 lines'], row['over 40']) == (1, 1, 2)


def test_table(nbs):
    lines = table(measure(nbs)).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[-1].startswith('all') and 'nodes a line' in lines[0]
