'''Recurrent layers, unrolled into their cells. Gates are products, and sigmoid and tanh need a form of their own.'''
import torch
from torch.nn import functional as F

from ..axes import joined_places, mixed
from ..split import SplitTensor, split_form, unsupported
from .arithmetic import valued
from .table import plain, refuse_pairs, require_evaluation


def lstm_step(gates, states, recur):
    '''The next states of an LSTM: hidden, and cell.'''
    input, forget, new, output = (gates + recur(states[0])).chunk(4, -1)
    cell = torch.sigmoid(forget) * states[1] + torch.sigmoid(input) * torch.tanh(new)
    return torch.sigmoid(output) * torch.tanh(cell), cell


def gru_step(gates, states, recur):
    '''The next state of a GRU.'''
    (reset, update, new), own = gates.chunk(3, -1), recur(states[0]).chunk(3, -1)
    update, new = update + own[1], torch.tanh(new + torch.sigmoid(reset + own[0]) * own[2])
    return torch.sigmoid(-update) * new + torch.sigmoid(update) * states[0],


def rnn_step(function):
    '''The function that computes the next state of a simple recurrent layer.'''
    return lambda gates, states, recur: (function(gates + recur(states[0])),)


STEPS = {'lstm': lstm_step, 'gru': gru_step, 'rnn_tanh': rnn_step(torch.tanh), 'rnn_relu': rnn_step(torch.relu)}


def direction(step, tokens, states, weights, backward):
    '''Run a cell over tokens, from the last one on if backward.

    Parameters
    ----------
    step : callable
        A function ``(gates, states, recur) -> states``, with ``recur`` for the layer of the hidden state.
    tokens : :py:class:`torch.Tensor` or :py:class:`~zennit_dc.split.SplitTensor`
        The input of shape (tokens, batch, channels).
    states : tuple
        The first states.
    weights : list of :py:class:`torch.Tensor`
        The weights of the input and of the hidden state, both biases where there are any, and then the weight of a
        projection of the hidden state where there is one.
    backward : bool
        Whether to begin with the last token.

    Returns
    -------
    tuple
        The hidden states of all tokens, and the last states.
    '''
    (inward, hidden), biases, projection = weights[:2], weights[2:4], weights[4:]
    biases, projection = ((None, None), biases) if len(biases) < 2 else (biases, projection)
    found = []
    for gates in F.linear(tokens, inward, biases[0]).unbind()[::-1 if backward else 1]:
        states = step(gates, states, lambda state: F.linear(state, hidden, biases[1]))
        if projection:
            states = F.linear(states[0], *projection), *states[1:]
        found.append(states[0])
    return torch.stack(found[::-1] if backward else found), states


def unrolled(step, tokens, states, weights, layers, directions):
    '''Run layers of cells over tokens, see :py:func:`direction`; with the weights of each layer and direction.'''
    each, last = len(weights) // (layers * directions), []
    for layer in range(layers):
        outputs = []
        for place in range(layer * directions, (layer + 1) * directions):
            own = weights[place * each:(place + 1) * each]
            output, after = direction(step, tokens, [state[place] for state in states], own, place % directions == 1)
            outputs.append(output)
            last.append(after)
        tokens = torch.cat(outputs, -1) if directions == 2 else outputs[0]
    return tokens, *map(torch.stack, zip(*last))


def register_recurrent(name):
    '''Register a recurrent layer.'''
    function, step = getattr(torch, name), STEPS[name]

    @split_form(function)
    def recurrent(input, states, weights, *settings):
        if isinstance(weights, torch.Tensor) or isinstance(settings[0], (tuple, list)):
            raise unsupported(name, (input, states), ' for packed sequences', 'pass a tensor')
        refuse_pairs(name, weights)
        _, layers, dropout, training, bidirectional, batch_first = settings
        require_evaluation(training and dropout > 0 and layers > 1, f'the dropout of {name}', (input, states))
        if not isinstance(input, SplitTensor):
            raise unsupported(name, (states,), ' for a constant input with states that depend on the input')

        def run(input, states):
            tokens = input.transpose(0, 1) if batch_first else input
            output, *last = unrolled(step, tokens, states, list(weights), layers, 1 + bidirectional)
            return output.transpose(0, 1) if batch_first else output, *last

        output, *last = as_computed(lambda *given: function(*given, weights, *settings), run, input, states)
        output.places = joined_places([(input.places, input.values[0].shape)], output.values[0].shape)
        mixed(output, -1)
        return output, *last


def as_computed(function, run, input, states):
    '''What an unrolled layer returns, with torch's own rounding where no step was replaced by another function.'''
    own = function(*plain((input, states)))
    several = states if isinstance(states, (tuple, list)) else (states,)
    found, values = run(input, several), run(*plain((input, several)))
    found = tuple(
        valued(pair, exact) if isinstance(pair, SplitTensor) and torch.equal(pair.difference, value) else pair
        for pair, value, exact in zip(found, values, own if isinstance(own, tuple) else (own,))
    )
    return found if isinstance(own, tuple) else found[0]


for name in STEPS:
    register_recurrent(name)


for name in ('lstm_cell', 'gru_cell', 'rnn_tanh_cell', 'rnn_relu_cell'):
    @split_form(getattr(torch, name))
    def cell(input, state, *weights, name=name):
        refuse_pairs(name, weights)
        step, (inward, hidden, *biases) = STEPS[name.removesuffix('_cell')], weights
        one, other = biases or (None, None)

        def run(input, states):
            return step(F.linear(input, inward, one), states, lambda tensor: F.linear(tensor, hidden, other))

        return as_computed(lambda *given: getattr(torch, name)(*given, *weights), run, input, state)
