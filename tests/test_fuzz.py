'''Random programs of everything that has a form, against the properties that all maps have. A small number of them in
each run; more with ``--graphs``, or with ``python -m tests.fuzzing``, which also shows failures as small programs.'''
import pytest
import torch
from fuzzing.campaign import run, try_program
from fuzzing.families import FAMILIES
from fuzzing.programs import generate

from zennit_dc.core.table import FORMS
from zennit_dc.forms.activations import relu


CHUNK = 50
# orders of convex streams are no maxima, and products from the left of a moved batch would mix the samples
REFUSED = {'sort', 'topk', 'a matrix product from the left'}


def pytest_generate_tests(metafunc):
    '''Chunks of seeds, which both workers share.'''
    if 'seeds' in metafunc.fixturenames:
        first = 10 ** 6 * metafunc.config.getoption('seed')
        end = first + metafunc.config.getoption('graphs')
        chunks = [range(start, min(start + CHUNK, end)) for start in range(first, end, CHUNK)]
        metafunc.parametrize('seeds', chunks, ids=[f'{chunk[0]}-{chunk[-1]}' for chunk in chunks])


@pytest.mark.slow(8)
def test_random_programs(seeds):
    '''No program deviates in silence, and none is refused but for what has no form by design.'''
    result = run(seeds)
    assert not result.failures, result
    assert set(result.refused) <= REFUSED, result


def test_random_programs_find_a_wrong_form(monkeypatch):
    '''A ReLU that leaves its sum as it is, and with it the gradient of what it cuts off, does not pass.'''
    def wrong(pair, inplace=False):
        return pair.replaced(relu(pair).difference, pair.tensors[1])

    for function in (torch.relu, torch.nn.functional.relu, torch.Tensor.relu):
        monkeypatch.setitem(FORMS, function, wrong)
    for name in ('sensitivity', 'relevance'):
        results = (try_program(generate(seed, FAMILIES), seed, (name,)) for seed in range(20))
        assert any(result.failures for result in results), name
