"How readable the notebooks are, in figures by wing: `python tools/measures.py [CHECKOUT]`, or `make measures`"
import argparse
import ast
import json
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

LONG_CELL = 40  # lines of an exported cell
LARGE_NOTEBOOK = 1e6  # bytes, pictures included
LONG_MODULE = 350  # lines that one notebook exports


@dataclass
class Measures:
    "What was counted in some notebooks"
    notebooks: int = 0
    large: int = 0  # notebooks over LARGE_NOTEBOOK
    long: int = 0  # notebooks that export more than LONG_MODULE lines
    cells: list = field(default_factory=list)  # lines of each exported cell, imports left out
    nodes: int = 0  # syntax nodes in the bodies of exported functions
    lines: int = 0  # lines of these bodies
    tuples: int = 0  # assignments with a tuple on either side, in exported cells
    bound_o: int = 0  # how often the name `o` is bound there
    words: int = 0  # of prose

    def __add__(self, other): return Measures(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def row(self):
        "The figures as a dict, in the order of the table"
        return {'notebooks': self.notebooks, f'over {LARGE_NOTEBOOK/1e6:g} MB': self.large, f'over {LONG_MODULE} lines': self.long,
                'exported cells': len(self.cells), 'median lines': statistics.median(self.cells) if self.cells else 0,
                f'over {LONG_CELL}': sum(n > LONG_CELL for n in self.cells),
                'nodes a line': round(self.nodes/self.lines, 1) if self.lines else 0,
                'tuple = tuple': self.tuples, 'bindings of o': self.bound_o, 'words': self.words}


def plain(source): return '\n'.join('' if re.match(r'\s*[%!]', line) else line for line in source.splitlines())
def code_lines(source): return [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith('#|')]
def is_exported(source): return re.match(r'#\|\s*export', source)
def only_imports(tree): return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body)


def swaps(node):
    "Whether an assignment only changes the places of what it assigns"
    return sorted(map(ast.unparse, node.targets[0].elts)) == sorted(map(ast.unparse, node.value.elts))


def tuple_assignments(tree):
    "Assignments with a tuple on either side, which are two statements in one line; swaps are none"
    assigned = [n for n in ast.walk(tree) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Tuple)]
    both = [n for n in assigned if any(isinstance(t, ast.Tuple) for t in n.targets)]
    return sum(not swaps(n) for n in both)


def bindings(tree, name='o'):
    "How often `name` is assigned, looped over or taken as a parameter"
    stored = sum(isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n.id == name for n in ast.walk(tree))
    return stored + sum(isinstance(n, ast.arg) and n.arg == name for n in ast.walk(tree))


def bodies(tree):
    "The statements of each function's body, docstring left out; functions inside functions are counted with them"
    def functions(nodes):
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): yield node
            elif isinstance(node, ast.ClassDef): yield from functions(node.body)
    for function in functions(tree.body):
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        if body: yield body


def density(tree):
    "Syntax nodes and lines of the bodies of functions"
    nodes = lines = 0
    for body in bodies(tree):
        nodes += sum(1 for statement in body for _ in ast.walk(statement))
        lines += len({n.lineno for statement in body for n in ast.walk(statement) if hasattr(n, 'lineno')})
    return nodes, lines


def measure_code(source):
    "What one cell of code adds"
    tree = ast.parse(plain(source))
    if not is_exported(source): return Measures()
    found = Measures(tuples=tuple_assignments(tree), bound_o=bindings(tree))
    if not only_imports(tree): found.cells = [len(code_lines(source))]
    found.nodes, found.lines = density(tree)
    return found


def measure_notebook(path):
    "What one notebook adds"
    found = Measures(notebooks=1, large=int(path.stat().st_size > LARGE_NOTEBOOK))
    exported = 0
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': found.words += len(source.split())
        elif cell['cell_type'] == 'code':
            found += measure_code(source)
            if is_exported(source): exported += len(code_lines(source))
    found.long = int(exported > LONG_MODULE)
    return found


def measure(nbs):
    "A dict from each folder of notebooks to what was counted in it, and all together"
    nbs = Path(nbs)
    folders = {}
    for path in sorted(nbs.rglob('*.ipynb')):
        inside = path.relative_to(nbs)
        if any(part[0] in '._' for part in inside.parts): continue
        wing = inside.parts[0] if len(inside.parts) > 1 else 'root'
        folders[wing] = folders.get(wing, Measures()) + measure_notebook(path)
    return folders | {'all': sum(folders.values(), Measures())}


def table(found):
    "The figures as text, one line a folder"
    rows = [['', *Measures().row()]] + [[name, *map(str, m.row().values())] for name, m in found.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join('  '.join(word.rjust(width) if i else word.ljust(width) for i, (word, width) in enumerate(zip(row, widths)))
                     for row in rows)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkout', nargs='?', default=Path(__file__).resolve().parent.parent, type=Path, help='another checkout to measure')
    print(table(measure(parser.parse_args().checkout/'nbs')))
