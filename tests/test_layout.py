'''The order of the package's rooms: nothing imports what is above it.'''
import ast
from pathlib import Path

import pytest
import zennit_dc

ROOT = Path(zennit_dc.__file__).parent
# each may import those before it
ORDER = [
    'lazy', 'wording', 'nested', 'buffers', 'axes', 'split', 'views', 'spatial', 'sharing', 'recentering', 'streams',
    'rules', 'operations', 'forms', 'needs', 'passes', 'tokens', 'canonizers', 'composites', 'logits', 'attribution',
    'methods', 'demo', 'data', 'networks', 'figures', 'virelay', 'evaluation', 'cli', '__main__',
]


def room_of(path):
    '''The first name below the package.'''
    return path.relative_to(ROOT).parts[0].removesuffix('.py')


def imported(path):
    '''The rooms that a file imports, wherever it does.'''
    package = ('zennit_dc', *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            start = package[:len(package) - node.level + 1] if node.level else ()
            name = (*start, *(node.module or '').split('.')) if node.module else start
            names = [(*name, each.name) for each in node.names] if name == ('zennit_dc',) else [name]
        elif isinstance(node, ast.Import):
            names = [tuple(each.name.split('.')) for each in node.names]
        else:
            continue
        yield from (name[1] for name in names if name[0] == 'zennit_dc' and len(name) > 1)


@pytest.mark.parametrize('path', [
    path for path in sorted(ROOT.rglob('*.py')) if path != ROOT / '__init__.py'
], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = 'canonizers' if path.name == 'taps.py' else room_of(path)  # forms that need passes
    above = ORDER[ORDER.index(room) + 1:]
    assert not set(imported(path)) & set(above)
