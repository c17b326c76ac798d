'''Models whose input is token numbers, as for texts. The split begins at the embeddings of the tokens, and the map has
one entry for each token.'''
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .axes import Axes, Axis
from .nested import flatten
from .pair import SplitTensor, unsupported
from .places import name_of


FIRST_EMBEDDING = 'the embedding of the tokens'  # where the map is read if no layer is named
MOVING = frozenset((
    'T', 'cat', 'chunk', 'concat', 'expand', 'flatten', 'flip', 'gather', 'getitem', 'hstack', 'index_select', 'mT',
    'moveaxis', 'movedim', 'narrow', 'permute', 'repeat', 'repeat_interleave', 'reshape', 'roll', 'select', 'split',
    'squeeze', 'stack', 'swapaxes', 't', 'take_along_dim', 'tile', 'transpose', 'unbind', 'unflatten', 'unfold',
    'unsqueeze', 'view', 'vstack',
))
'''Functions that return the same token numbers at other indices.'''
CHANGING = frozenset((
    'abs', 'add', 'clamp', 'clip', 'clone', 'contiguous', 'cpu', 'cuda', 'data', 'detach', 'int', 'long', 'masked_fill',
    'mul', 'radd', 'remainder', 'rmul', 'sub', 'to', 'type', 'where',
))
'''Functions that return other numbers for the same tokens.'''


def are_tokens(leaf):
    '''Whether an argument of a model may be token numbers.'''
    return torch.is_tensor(leaf) and not leaf.is_floating_point() and not leaf.is_complex() and leaf.ndim > 0 \
        and leaf.dtype != torch.bool


def token_weights(tokens, model):
    '''A weight of one for each token of a model's input, which stands for it in the graph. Its gradient is the map of
    the tokens.'''
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    weights = torch.ones(tokens.shape, dtype=dtype, device=tokens.device).requires_grad_(torch.is_grad_enabled())
    weights.tokens = tokens
    return weights


class Embedding(TorchFunctionMode):
    '''A context in which a model that is called on token numbers gets split pairs from its embeddings.

    Parameters
    ----------
    weights : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The pair that stands for the tokens.
    tokens : :py:class:`torch.Tensor`
        Their numbers.
    '''
    def __init__(self, weights, tokens):
        super().__init__()
        self.known = [(tokens, weights)]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        leaves, structure = flatten((args, kwargs))
        own = [(tokens, pair) for tokens, pair in self.known if any(tokens is leaf for leaf in leaves)]
        if not own:
            return output
        name = name_of(function)
        if name == 'embedding_bag':
            raise unsupported(name, (own[0][1],), remedy='sum what an nn.Embedding returns')
        if torch.is_tensor(output) and output.is_floating_point() and not isinstance(output, SplitTensor):
            is_embedding = function is F.embedding or name in ('getitem', 'index_select')
            return embedded(output, own[0][1]) if is_embedding else output
        if name in MOVING:
            args, kwargs = structure([next((pair for tokens, pair in own if tokens is leaf), leaf) for leaf in leaves])
            self.known += zip(flatten(output)[0], flatten(function(*args, **kwargs))[0])
        elif name in CHANGING and torch.is_tensor(output) and output.shape == own[0][0].shape:
            self.known.append((output, own[0][1]))
        return output


def embedded(output, weights):
    '''The pair of an embedding's output, for tokens for which another pair stands.'''
    split_pass = weights.split_pass
    pair = SplitTensor(*split_pass.embedded(output, split_pass.sum_of_input(output)), split_pass).as_input()
    axis = weights.axis('batch')
    batch = pair.axes.batch if axis is None else Axis.at(output.shape, axis + weights.values[0].ndim)
    pair.depth, pair.axes = weights.depth, Axes(batch, Axis.at(output.shape, -1), weights.axes.places)
    split_pass.input_axes.channels.setdefault(0, None)
    if split_pass.settings.layer is None:
        split_pass.at_layer(FIRST_EMBEDDING, pair)
    return pair
