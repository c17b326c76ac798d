'''Files of weights: what is read, and what is said of others.'''
import re

import pytest
import torch
from commands import require_error, run
from PIL import Image
from torch import nn

from zennit_dc.data.classifiers import load_classifier
from zennit_dc.data.weights import diagnosed, load_weights
from zennit_dc.demo import demo_network, draw


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize('nest', [
    lambda state: state,
    lambda state: {'state_dict': state, 'epoch': 3},
    lambda state: {'model_state_dict': state, 'optimizer': {}},
    lambda state: {'model': {'state_dict': state}},
    lambda state: {f'module.{name}': tensor for name, tensor in state.items()},
    lambda state: {'model': {f'module.{name}': tensor for name, tensor in state.items()}},
    lambda state: {'state_dict': {f'model.{name}': tensor for name, tensor in state.items()}, 'epoch': 1},
    lambda state: {f'net.backbone.{name}': tensor for name, tensor in state.items()},
    lambda state: {f'_orig_mod.module.{name}': tensor for name, tensor in state.items()},
])
def test_checkpoints(nest, tmp_path):
    expected, model = small().state_dict(), small()
    torch.save(nest(expected), tmp_path / 'x.pt')
    load_weights(model, 'small', tmp_path / 'x.pt')
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_module_of_the_name_of_a_prefix(tmp_path):
    expected, model = nn.DataParallel(small()).state_dict(), nn.DataParallel(small())
    torch.save(expected, tmp_path / 'x.pt')
    load_weights(model, 'small', tmp_path / 'x.pt')
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_module_within_one_of_the_same_name(tmp_path):
    def build():
        model = nn.Module()
        model.a, model.a.b = nn.Linear(2, 2), nn.Linear(2, 2)
        model.a.a = nn.Linear(2, 2)
        return model

    expected, model = build().state_dict(), build()
    torch.save(expected, tmp_path / 'x.pt')
    load_weights(model, 'own', tmp_path / 'x.pt')
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_what_is_said_of_prefixes(tmp_path):
    state = {f'model.{name}': tensor for name, tensor in small().state_dict().items()}
    torch.save({**state, 'loss.weight': torch.ones(2)}, tmp_path / 'more.pt')
    with pytest.raises(ValueError, match="prefix 'model.' is left out where all.* 1 have not: loss.weight;"):
        load_weights(small(), 'small', tmp_path / 'more.pt')
    del state['model.3.bias']
    torch.save(state, tmp_path / 'less.pt')
    with pytest.raises(ValueError, match=r"are missing \(3.bias\) \(without the prefix 'model.' of all names\)"):
        load_weights(small(), 'small', tmp_path / 'less.pt')


def test_weights_that_do_not_fit(tmp_path):
    state = {**{f'extra.{index}': torch.zeros(1) for index in range(50)}, **small().state_dict()}
    state['0.weight'] = torch.zeros(7, 3, 3, 3)
    del state['3.bias']
    torch.save(state, tmp_path / 'x.pt')
    with pytest.raises(ValueError) as error:
        load_weights(small(), 'small', tmp_path / 'x.pt')
    message = str(error.value)
    assert re.search(r'1 of 9 tensors are missing \(3.bias\).*50 of 58 are unexpected \(extra', message)
    assert '0.weight (7, 3, 3, 3), not (4, 3, 3, 3)' in message and len(message) < 400


@pytest.mark.parametrize('dtype', [torch.int32, torch.complex64])
def test_weights_that_are_no_real_numbers(dtype, tmp_path):
    state = small().state_dict()
    state['0.weight'] = state['0.weight'].to(dtype)
    torch.save(state, tmp_path / 'x.pt')
    with pytest.raises(ValueError, match=fr'1 of 9 are of another kind \(0.weight {dtype}, not torch.float32\)'):
        load_weights(small(), 'small', tmp_path / 'x.pt')


@pytest.mark.parametrize('content, message', [
    (b'', 'empty'), (b'no weights', 'truncated, of another kind'), (None, 'truncated, of another kind'),
    ([torch.zeros(3)], 'a list'), ({'epoch': 3}, 'epoch'), (small(), 'more than tensors'),
])
def test_files_that_hold_no_weights(content, message, tmp_path):
    path = tmp_path / 'x.pt'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(small().state_dict() if content is None else content, path)
    if content is None:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=message) as error:
        load_weights(small(), 'small', path)
    assert '\n' not in str(error.value) and str(path) in str(error.value)
    with pytest.raises(ValueError, match='https://x.org/a.pt is a URL'):
        load_weights(small(), 'small', 'https://x.org/a.pt')


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_told(value, tmp_path):
    state = demo_network().state_dict()
    broken = next(name for name, tensor in state.items() if tensor.ndim == 4)
    state[broken].flatten()[0] = value
    torch.save(state, tmp_path / 'x.pt')
    Image.fromarray(draw(7, 0).image).save(tmp_path / 'x.png')
    for method in ('gradient', 'splitgrad', 'splitlrp'):
        require_error(run(
            'explain', tmp_path / 'x.png', '--model', 'demo', '--weights', tmp_path / 'x.pt', '--method',
            f'{method}@input', '--out', tmp_path / 'out.png'
        ), '1 of the model\'s', broken)


def test_finite_weights_are_not_the_reason():
    with pytest.raises(FloatingPointError, match='the map is not finite .the weights are finite'), diagnosed(small()):
        raise FloatingPointError('the map is not finite')


@pytest.mark.parametrize('name, meant', [('squeeznet1_0', 'squeezenet1_0'), ('VGG16', 'vgg16'), ('dmeo', 'demo')])
def test_what_classifier_was_meant(name, meant):
    with pytest.raises(ValueError, match=f'did you mean .*{meant}'):
        load_classifier(name)


def test_random_weights_of_a_name(tmp_path):
    for name in ('demo', 'squeezenet1_1'):
        torch.manual_seed(0)
        state = load_classifier(name, weights=None).model.state_dict()
        other = load_classifier(name, weights=None).model.state_dict()
        assert any(not torch.equal(state[key], other[key]) for key in state)
