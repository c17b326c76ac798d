'''Recurrent layers, unrolled into their cells.'''
import pytest
import torch
from helpers import assert_close, divided, explain, random_image
from small_models import Calling, pair_of
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zennit_dc import DetachedActivations, SmoothReplacement, SplitGrad, SplitLRP, SplitTensor
from zennit_dc.core.pair import Pass, Settings
from zennit_dc.forms.smooth import interpolation


TOLERANCE = 1e-3


def network(kind, **kwargs):
    '''A recurrent layer whose last state is the output.'''
    torch.manual_seed(0)
    layer = kind(5, 4, batch_first=True, **kwargs).double().eval()
    model = Calling(lambda x: layer(x)[0][:, -1])
    model.layer = layer
    return model


# the streams of a cell, written out for differences and sums

def dense(pair, weight, bias):
    return pair[0] @ weight.T + bias, pair[1] @ weight.abs().T + bias.abs()


def smooth(name, pair):
    output = interpolation(name, TOLERANCE, ()).split(SplitTensor(*pair))
    return output.difference, output.stream_sum


def plus(*pairs):
    return tuple(map(sum, zip(*pairs)))


def times(one, other):
    return tuple(first * second for first, second in zip(one, other))


def parts(pair, count):
    return list(zip(*(tensor.chunk(count, -1) for tensor in pair)))


def lstm(gates, own, states):
    input, forget, new, output = parts(plus(gates, own), 4)
    cell = plus(times(smooth('sigmoid', forget), states[1]), times(smooth('sigmoid', input), smooth('tanh', new)))
    return times(smooth('sigmoid', output), smooth('tanh', cell)), cell


def gru(gates, own, states):
    (reset, update, new), (own_reset, own_update, own_new) = parts(gates, 3), parts(own, 3)
    update = plus(update, own_update)
    new = smooth('tanh', plus(new, times(smooth('sigmoid', plus(reset, own_reset)), own_new)))
    rest = smooth('sigmoid', (-update[0], update[1]))  # one minus the gate
    return plus(times(rest, new), times(smooth('sigmoid', update), states[0])),


def rnn(gates, own, states):
    return smooth('tanh', plus(gates, own)),


@pytest.mark.parametrize('kind, cell', [(nn.LSTM, lstm), (nn.GRU, gru), (nn.RNN, rnn)])
def test_streams(kind, cell):
    '''Step by step, as the paper's forms of layers, products and activations have them.'''
    model, pair = network(kind), pair_of((2, 3, 5))
    option, = SmoothReplacement(TOLERANCE).apply(model)
    output = model(SplitTensor(*pair.values, Pass(Settings(root=model))).as_input())
    option.remove()
    zero = torch.zeros(2, 4, dtype=torch.float64)
    states = ((zero, zero),) * (2 if kind is nn.LSTM else 1)
    inward, hidden, *biases = model.layer._flat_weights
    for step in range(3):
        token = tuple(tensor[:, step] for tensor in pair.values)
        states = cell(dense(token, inward, biases[0]), dense(states[0], hidden, biases[1]), states)
    for actual, expected in zip(output.values, states[0]):
        assert_close(actual, expected)
    assert (output.axis('batch'), output.axis('channels')) == (-2, -1)


MODELS = {
    'lstm': (nn.LSTM, {}), 'lstm in both directions': (nn.LSTM, {'bidirectional': True, 'num_layers': 2}),
    'lstm with projections': (nn.LSTM, {'proj_size': 3}), 'gru': (nn.GRU, {'bias': False}),
    'gru in both directions': (nn.GRU, {'bidirectional': True, 'num_layers': 2}),
    'rnn': (nn.RNN, {}), 'rnn with relu': (nn.RNN, {'nonlinearity': 'relu'}),
}


@pytest.mark.parametrize('name', MODELS)
def test_constant_gates(name):
    '''explain() asserts that the output is bit-identical.'''
    kind, kwargs = MODELS[name]
    model, image = network(kind, **kwargs), random_image(2, 3, 5)
    for make in (SplitGrad, SplitLRP):
        map = explain(make(canonizers=[DetachedActivations()]), model, image)
        assert (map.abs().amax((1, 2)) > 0).all()
        tolerance = divided() if make is SplitLRP else 1e-12
        assert_close(map[:1], explain(make(canonizers=[DetachedActivations()]), model, image[:1]), tolerance)


@pytest.mark.parametrize('kind', [nn.LSTM, nn.GRU])
def test_products_of_gates(kind):
    model, image = network(kind, bidirectional=True), random_image(2, 3, 5).requires_grad_()
    maps = []
    for alpha in (.5, .3):
        with SplitGrad(alpha, canonizers=[SmoothReplacement(1e-6)]).context(model):
            maps.append(torch.autograd.grad(model(image)[:, 2].sum(), image)[0])
    expected, = torch.autograd.grad(model(image)[:, 2].sum(), image)
    assert (maps[0] - expected / 2).abs().max() < 3e-3 * expected.abs().max() < (maps[1] - maps[0]).abs().max()


@pytest.mark.parametrize('kind', [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind):
    cell = kind(5, 4).double()
    model = Calling(lambda x: (cell(x, cell(2 * x))[0] if kind is nn.LSTMCell else cell(x, cell(2 * x))))
    assert explain(SplitGrad(canonizers=[DetachedActivations()]), model, random_image(2, 5)).any()


# packed sequences

LENGTHS = torch.tensor([3, 6, 4])


class Packed(nn.Module):
    '''Recurrent layers of sequences of several lengths, packed or one by one.'''
    def __init__(self, kind, **kwargs):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([kind(5, 4, 2, batch_first=True, **kwargs).double()])
        size = kwargs.get('proj_size', 4) * (1 + kwargs.get('bidirectional', False))
        self.layers.append(kind(size, 4, batch_first=True).double())
        self.last = nn.Linear(4, 3).double()
        self.eval()

    def forward(self, x, lengths=LENGTHS):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        for layer in self.layers:
            packed, states = layer(packed)
        output, _ = pad_packed_sequence(packed, batch_first=True)
        states = states[0] if isinstance(states, tuple) else states
        return self.last(output.sum(1) + states[-1])


@pytest.mark.parametrize('kind, kwargs', [
    (nn.LSTM, {'bidirectional': True}), (nn.GRU, {'bidirectional': True}), (nn.RNN, {'nonlinearity': 'relu'}),
    (nn.LSTM, {'proj_size': 3}),
])
def test_packed(kind, kwargs):
    '''The output is torch's; padding has no part in the map, and no sequence depends on the others.'''
    model, sequences = Packed(kind, **kwargs), random_image(3, 6, 5)
    for composite in (SplitGrad(.3, canonizers='auto'), SplitLRP(1e-3, canonizers='auto')):
        map = explain(composite, model, sequences)
        for index, length in enumerate(LENGTHS.tolist()):
            image = sequences[index:index + 1, :length].clone().requires_grad_()
            with composite.context(model):
                alone, = torch.autograd.grad(model(image, LENGTHS[index:index + 1])[:, 2].sum(), image)
            assert_close(map[index:index + 1, :length], alone, divided(1e-3))
            assert map[index, :length].any(1).all() and not map[index, length:].any()


def test_gradients_of_packed_sequences():
    model, sequences = Packed(nn.RNN, nonlinearity='relu', bidirectional=True), random_image(3, 6, 5).requires_grad_()
    model.layers[1] = nn.RNN(8, 4, nonlinearity='relu', batch_first=True).double()
    expected, = torch.autograd.grad(model(sequences)[:, 2].sum(), sequences)
    assert_close(explain(SplitGrad(.5), model, sequences), expected / 2)


def test_padding_value():
    pair = pair_of((2, 3, 4))

    def both(tensor, value):
        packed = pack_padded_sequence(tensor, [3, 1], batch_first=True)
        return pad_packed_sequence(packed, True, value, 4)[0]

    output = both(pair, -2.)
    assert torch.equal(output.difference, both(pair.difference, -2.))
    assert torch.equal(output.stream_sum, both(pair.stream_sum, 2.))


def test_refused():
    model = network(nn.LSTM)
    composite = SplitGrad(canonizers=None)
    with composite.context(model), pytest.raises(NotImplementedError, match=r'LSTM.*SmoothReplacement\(\)'):
        model(random_image(2, 3, 5))
    pair = pair_of((4, 5))
    layer = nn.LSTM(5, 4, 2, dropout=.5).double()
    with pytest.raises(RuntimeError, match=r'the dropout of lstm.*eval'):
        layer(pair_of((2, 3, 5)))
    weight = F.relu(pair_of((16, 5)))
    with pytest.raises(NotImplementedError, match='depends on the input'):
        torch.lstm_cell(pair, (torch.zeros(4, 4).double(),) * 2, weight, torch.zeros(16, 4).double())
