'''Recurrent layers, unrolled into their cells. Gates are products, and sigmoid and tanh need a form of their own.'''
from functools import partial

import torch
from torch.nn import functional as F

from ..core.axes import Axis, require_samples
from ..core.blocks import route
from ..core.following import joined_places, mixed
from ..core.pair import SplitTensor, unsupported
from ..core.registry import split_form
from .arithmetic import valued
from .table import plain, refuse_pairs, refuse_random


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


def rnn_step(function, gates, states, recur):
    '''The next state of a simple recurrent layer.'''
    return function(gates + recur(states[0])),


STEPS = {
    'lstm': lstm_step, 'gru': gru_step, 'rnn_tanh': partial(rnn_step, torch.tanh),
    'rnn_relu': partial(rnn_step, torch.relu),
}


def direction(step, tokens, states, weights, backward, active=None):
    '''Run a cell over tokens, from the last one on if backward.

    Parameters
    ----------
    step : callable
        A function ``(gates, states, recur) -> states``, with ``recur`` for the layer of the hidden state.
    tokens : :py:class:`torch.Tensor` or :py:class:`~zennit_dc.core.pair.SplitTensor`
        The input of shape (tokens, batch, channels).
    states : tuple
        The first states.
    weights : list of :py:class:`torch.Tensor`
        The weights of the input and of the hidden state, both biases where there are any, and then the weight of a
        projection of the hidden state where there is one.
    backward : bool
        Whether to begin with the last token.
    active : :py:class:`torch.Tensor`, optional
        A mask of shape (tokens, batch, 1): where it is not set, a sequence has no token, and its states stay.

    Returns
    -------
    tuple
        The hidden states of all tokens, and the last states.
    '''
    inward, hidden, *others = weights
    biases, projection = (others[:2], others[2:]) if len(others) > 1 else ((None, None), others)
    found = []
    if active is None:
        gates = F.linear(tokens, inward, biases[0]).unbind()
    else:  # token by token, as a sample would be re-centered with its padding otherwise
        gates = [F.linear(token, inward, biases[0]) for token in tokens.unbind()]
    for place in range(len(gates))[::-1 if backward else 1]:
        before, states = states, step(gates[place], states, lambda state: F.linear(state, hidden, biases[1]))
        if projection:
            states = F.linear(states[0], *projection), *states[1:]
        if active is not None and not active[place].all():
            states = tuple(torch.where(active[place], new, old) for new, old in zip(states, before))
        found.append(states[0])
    return torch.stack(found[::-1] if backward else found), states


def unrolled(step, tokens, states, weights, layers, directions, active=None):
    '''Run layers of cells over tokens, see :py:func:`direction`; with the weights of each layer and direction.'''
    each, last = len(weights) // (layers * directions), []
    for layer in range(layers):
        places = range(layer * directions, (layer + 1) * directions)
        outputs, after = zip(*(direction(
            step, tokens, [state[place] for state in states], weights[place * each:(place + 1) * each],
            place % directions == 1, active
        ) for place in places))
        tokens = torch.cat(outputs, -1) if directions == 2 else outputs[0]
        last += after
    return tokens, *map(torch.stack, zip(*last))


def recurrent(function, step, input, *given):
    '''A recurrent layer; one of packed sequences if their sizes follow the input.'''
    is_packed = isinstance(given[2], (tuple, list))
    sizes, given = given[:is_packed], given[is_packed:]
    states, weights, _, layers, dropout, training, bidirectional, *batch_first = given
    name = function.__name__
    refuse_pairs(name, *weights)
    refuse_random(training and dropout > 0 and layers > 1, f'the dropout of {name}', (input, states))
    if not isinstance(input, SplitTensor):
        raise unsupported(name, (states,), ' for a constant input with states that depend on the input')
    cells = partial(unrolled, step, weights=list(weights), layers=layers, directions=1 + bidirectional)

    def own(input, states):
        return function(input, *sizes, states, *given[1:])

    if is_packed:
        return as_computed(own, partial(of_packed, cells, *sizes), input, states)
    require_samples(input, int(not batch_first[0]))
    output, *last = as_computed(own, partial(of_tokens, cells, *batch_first), input, states)
    places = joined_places([(input.axes.places, input.values[0].shape)], output.values[0].shape)
    output.axes = output.axes._replace(places=places)
    mixed(output, -1)
    return output, *last


def of_tokens(cells, batch_first, input, states):
    '''What cells make of tokens, before which samples may come.'''
    output, *last = cells(input.transpose(0, 1) if batch_first else input, states)
    return output.transpose(0, 1) if batch_first else output, *last


def of_packed(cells, sizes, data, states):
    '''What cells make of packed sequences: of padded ones, whose states stay where they have ended.'''
    active = (torch.arange(int(sizes[0])) < sizes[:, None]).unsqueeze(-1).to(data.device)
    tokens, lengths = PADS(data, sizes, False, 0., len(sizes))
    if isinstance(tokens, SplitTensor):  # as sequences that begin after others have states that are pairs
        states = [constant_pair(tokens, state) for state in states]
    output, *last = cells(tokens, states, active=active)
    return PACKS(output, lengths, False)[0], *last


def cell(function, step, input, state, *weights):
    '''A cell alone.'''
    refuse_pairs(function.__name__, *weights)
    inward, hidden, one, other = (*weights, None, None)[:4]

    def run(input, states):
        return step(F.linear(input, inward, one), states, lambda tensor: F.linear(tensor, hidden, other))

    return as_computed(lambda input, state: function(input, state, *weights), run, input, state)


def constant_pair(pair, tensor):
    '''A tensor of shape (…, batch, channels), as a pair if it is none.'''
    if isinstance(tensor, SplitTensor):
        return tensor
    output = pair.like(tensor, tensor.abs())
    output.axes = output.axes._replace(batch=Axis.at(tensor.shape, -2))
    return output


# packed sequences: the tokens of all sequences in one axis, the first ones of all, then the second ones, and so on

PACKS, PADS = torch._C._VariableFunctions._pack_padded_sequence, torch._C._VariableFunctions._pad_packed_sequence


@split_form(PACKS)
def pack(pair, lengths, batch_first):
    def move(tensor):
        return PACKS(tensor, plain(lengths), batch_first)[0]

    return route(pair, move, None), PACKS(pair.difference.detach(), plain(lengths), batch_first)[1]


@split_form(PADS)
def pad(pair, sizes, batch_first, padding_value, total_length):
    def move(tensor, value):
        return PADS(tensor, sizes, batch_first, value, total_length)[0]

    difference, stream_sum = pair.tensors
    output = pair.like(move(difference, padding_value), move(stream_sum, abs(padding_value)))
    output.axes = output.axes._replace(batch=Axis.at(output.values[0].shape, int(not batch_first)))
    return output, PADS(difference.detach(), sizes, batch_first, padding_value, total_length)[1]


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


for name, step in STEPS.items():
    for function, form in ((getattr(torch, name), recurrent), (getattr(torch, f'{name}_cell'), cell)):
        split_form(function)(partial(form, function, step))
