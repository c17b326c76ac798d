'''Functions with unusual arguments, for which a form is what torch's function is: reflected operators, axes of all
kinds, constants on either side, orders of memory, infinite entries.'''
import math

import hypothesis
import pytest
import torch
from agreement import require_agreement, split_inputs
from helpers import random_image
from hypothesis import strategies
from small_models import Calling
from torch.nn import functional as F

from zennit_dc import DetachedStatistics, SplitGrad
from zennit_dc.core.errors import Unsupported


X, Y = random_image(3, 4), random_image(3, 4, seed=2)
MASK = torch.tensor([[True, False, False, True], [False, True, False, False], [True, True, True, False]])
GRID = random_image(1, 40, 5, 2).clamp(-1, 1)
SQUARE, OTHER = random_image(4, 4), random_image(4, 4, seed=2)
CALLS = {
    'reflected matmul': (lambda x, y: x.__rmatmul__(y), SQUARE, OTHER),
    'reflected matmul, as a function': (torch.Tensor.__rmatmul__, SQUARE, OTHER),
    'maximum with minus infinity': (torch.maximum, X, torch.full((4,), -math.inf).double()),
    'maximum of equal ones': (torch.maximum, X.sign(), Y.sign()),
    'fmax': (torch.fmax, X.sign(), Y.sign()),
    'fmin': (torch.fmin, X.sign(), Y.sign()),
    'fmax with nan': (torch.fmax, torch.tensor([1., math.nan, 2.]), torch.tensor([math.nan, -3., 4.])),
    'fmin with nan': (torch.fmin, torch.tensor([1., math.nan, 2.]), torch.tensor([math.nan, -3., 4.])),
    'amax of masked entries': (lambda x: x.masked_fill(MASK, -math.inf).amax(1), X),
    'amin of masked entries': (lambda x: x.masked_fill(MASK, math.inf).amin((-1,), True), X),
    'aminmax of equal entries': (lambda x: torch.aminmax(x, dim=-1, keepdim=True), X.sign()),
    'addmm in place': (lambda x, y: x.clone().addmm_(y, SQUARE, alpha=-2.), X, Y),
    'sort along an axis with the name that numpy has for it': (lambda x: torch.sort(x, axis=0)[0], SQUARE),
    'gather along one': (lambda x: torch.gather(x, axis=0, index=torch.tensor([[2, 0, 1, 1]])), SQUARE),
    'the second chunk along one': (lambda x: torch.chunk(x, 2, axis=1)[1], SQUARE),
    'unbind along one': (lambda x: torch.unbind(x, axis=1)[2], SQUARE),
    'amax along one that is kept': (lambda x: x.amax(axis=1, keepdims=True), SQUARE),
    'axes of several tensors': (lambda x, y: torch.atleast_3d(x, Y, y), X, Y),
    'topk of a number': (lambda x: x.topk(1)[0], X[0, 0]),
    'a number in order': (lambda x: torch.sort(x)[0], X[0, 0]),
    'aminmax of an axis': (lambda x: tuple(x.aminmax(dim=1)), X),
    'a constant in another order of memory, times a pair': (torch.mul, X.mT.contiguous().mT, Y),
    'no differences': (lambda x, y: torch.diff(x, 0, 0, y), X, Y),
    'differences of differences': (lambda x, y: x.diff(n=2, dim=0, append=y), X, Y),
    'more differences than entries': (lambda x: torch.diff(x, 5), X),
    'take_along_dim without an axis': (lambda x: torch.take_along_dim(x, torch.tensor([[7, 2], [1, 1]])), X),
    'take_along_dim with an axis': (lambda x: x.take_along_dim(torch.tensor([[2, 0]]), dim=-1), X),
    'index_reduce of numbers': (
        lambda x, y: torch.index_reduce(x, 0, torch.tensor([0]), y, 'mean', include_self=False), X[0, 0], Y[0, 0]
    ),
    'index_reduce over the last axis': (
        lambda x, y: x.index_reduce(-1, torch.tensor([3, 0, 3, 1]), y, 'amax'), X, Y
    ),
    'complex numbers of a broadcast part': (lambda x, y: torch.complex(x, y).real, X, Y[0, 0]),
    'complex numbers in another order of memory': (lambda x, y: torch.complex(x.mT, y.mT).imag, X, Y),
    'ifft of real numbers': (lambda x: torch.fft.ifft(x, n=6, dim=0, norm='ortho').real, X),
    'ifft2 of real numbers': (lambda x: torch.fft.ifft2(x).imag, X),
    'fftn along one axis': (lambda x: torch.fft.fftn(x, 5, 0).real, X),
    'irfft2 along one axis': (lambda x: torch.fft.irfft2(x, dim=0), X),
    'where, of named choices': (lambda x, y: torch.where(MASK, input=x, other=y), X, Y),
    'where, of names alone': (lambda x, y: torch.where(condition=MASK, input=x, other=y), X, Y),
    'where of another mask than the choice': (lambda x, y: torch.where(MASK, x, other=y), X, Y),
    'where of numbers': (lambda x: torch.where(MASK, other=x, input=torch.tensor(3)), X),
    'where as a method': (lambda x, y: x.where(condition=MASK, other=y), X, Y),
    'linear with a vector': (lambda x: F.linear(x, Y[0]), X),
    'dot with a named vector': (lambda x, y: torch.dot(x, tensor=y), X[0], Y[0]),
    'vdot with a named vector': (lambda x, y: torch.vdot(x, other=y), X[0], Y[0]),
    'outer with a named vector': (lambda x, y: torch.outer(x, vec2=y), X[0], Y[0]),
    'kron of a named factor': (lambda x, y: torch.kron(x, other=y), X, Y),
    'inner of a named factor': (lambda x, y: x.inner(other=y), X, Y),
    'index_put of whole axes': (
        lambda x, y: torch.ops.aten.index_put(x, [None, torch.tensor([2, 0])], y[:, :2]), X, Y
    ),
    'index_put of whole axes, adding': (
        lambda x, y: torch.ops.aten.index_put(x, [None, torch.tensor([2, 2])], y[:, :2], True), X, Y
    ),
    'grid_sample of the nearest places, in bfloat16': (
        lambda x: F.grid_sample(x[None, None], GRID.bfloat16(), 'nearest', align_corners=True), X.bfloat16()
    ),
    'minimum with integers without a sign': (lambda x: torch.minimum(x, torch.tensor([1, 200, 0, 3]).byte()), X),
    'minimum with a mask': (lambda x: torch.minimum(MASK, x), X),
}


def features(pair):
    '''A statistic that is a feature itself, as it is concatenated.'''
    return torch.cat([pair, X[:, :pair.shape[1]]])


DETACHED = {
    'a number over a pair': (lambda x: 3 / x, Y.float()),
    'a named pair over a statistic': (lambda x: torch.div(input=x, other=x.std(1, keepdim=True)), X),
    'a named statistic to a power': (lambda x: torch.pow(input=x.std(1), exponent=-1.5), X),
    'reflected division': (lambda x, y: x.__rtruediv__(y), X.float(), Y.float()),
    'log1p of negative numbers': (torch.log1p, torch.linspace(-.99, 2., 7)),
    'softmax in another dtype': (lambda x: features(x.softmax(1, torch.float64)), X.float()),
    'softmax of masked entries': (lambda x: features(x.masked_fill(MASK, -math.inf).softmax(1)), X),
    'group_norm of no samples': (lambda x: F.group_norm(x[:0], 2), X),
    'norm of a number': (lambda x: torch.atleast_1d(x.norm(2, 0)), X[0, 0]),
    'std over no axes': (lambda x: torch.std(x, [], keepdim=True), X),
    'a mask over a pair': (lambda x: MASK / x, X),
    'norm in another dtype': (
        lambda x: features(torch.linalg.vector_norm(x, 2, 1, True, dtype=torch.float64)), X.float()
    ),
    'exp of masked entries': (lambda x: features(x.masked_fill(MASK, -math.inf).exp()), X),
    'reciprocal of infinite entries': (lambda x: features(x.masked_fill(MASK, math.inf).reciprocal()), X),
}


def places(count):
    '''Which of some tensors are pairs: each alone, and all.'''
    return [None, *([place] for place in range(count))]


def require_gradient(function, *arguments):
    '''Skip where this version of torch has no such function, or no gradient of it.'''
    leaves = [each.clone().requires_grad_() if each.is_floating_point() else each for each in arguments]
    try:
        tensors = function(*leaves)
        sum(each.sum() for each in (tensors if isinstance(tensors, tuple) else [tensors])).backward()
    except RuntimeError as error:
        pytest.skip(f'torch {torch.__version__}: {error}')


@pytest.mark.parametrize('name', CALLS)
def test_agreement(name):
    function, *arguments = CALLS[name]
    if any(each in name for each in ('aminmax', 'bfloat16')):
        require_gradient(function, *arguments)
    for pairs in places(sum(isinstance(each, torch.Tensor) and each.is_floating_point() for each in arguments)):
        require_agreement(function, *arguments, pairs=pairs)


@pytest.mark.parametrize('name', DETACHED)
def test_agreement_of_values_with_detached_statistics(name):
    model = Calling(torch.nn.Identity())
    applied, = DetachedStatistics().apply(model)
    function, *arguments = DETACHED[name]
    for pairs in places(len(arguments)):
        require_agreement(function, *arguments, pairs=pairs, root=model, gradient=False)
    applied.remove()


PARAMETERS = {
    'prelu': lambda pair: F.prelu(X, pair[0, :1]),
    'batch_norm': lambda pair: F.batch_norm(X, pair[0], pair[1], training=True),
    'batch_norm of a pair': lambda pair: F.batch_norm(pair, pair[0], pair[1]),
    'layer_norm': lambda pair: F.layer_norm(X, (4,), pair[0]),
    'rms_norm': lambda pair: F.rms_norm(X, (4,), pair[0]),
    'instance_norm': lambda pair: F.instance_norm(X[None], weight=pair[:, 0]),
    'group_norm': lambda pair: F.group_norm(X, 2, None, pair[0]),
}


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameters_that_depend_on_the_input_are_named(name):
    model = Calling(torch.nn.Identity())
    applied, = DetachedStatistics().apply(model)
    with pytest.raises(Unsupported, match='for a weight or a bias that depends on the input'):
        PARAMETERS[name](split_inputs(model)(X))
    applied.remove()


REFUSED = {
    'times a complex number': (lambda pair: pair * 1j, 'complex'),
    'plus complex numbers': (lambda pair: torch.tensor([1j]) + pair, 'complex'),
    'over complex numbers': (lambda pair: pair / torch.tensor([1j]), 'complex'),
    'a choice of complex numbers': (lambda pair: torch.where(MASK, pair, 1j), 'complex'),
    'out of a sum': (lambda pair: torch.add(pair, X, out=torch.empty_like(X)), r'torch\.add.*out='),
    'out of constants': (lambda pair: torch.add(X, X, out=pair), r'torch\.add.*out='),
    'sparse reduction': (lambda pair: torch.sparse.mm(Y.mT.to_sparse_csr(), pair, 'sum'), 'reduce=\'sum\''),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_has_no_form_is_named(name):
    function, named = REFUSED[name]
    with pytest.raises(Unsupported, match=named):
        function(split_inputs()(X))


LAYOUTS = {
    'sparse': lambda x: x.to_sparse().to_dense(), 'csr': lambda x: x.to_sparse_csr().to_dense(),
    'mkldnn': lambda x: x.to_mkldnn().to_dense(),
    'nested': lambda x: torch.nested.as_nested_tensor(list(x)).to_padded_tensor(0.),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_other_layouts_are_named(name):
    with SplitGrad().context(model := Calling(LAYOUTS[name])), pytest.raises(Unsupported):
        model(X.float().requires_grad_())


@pytest.mark.parametrize('function', [
    lambda pair: pair - True, lambda pair: MASK - pair, lambda pair: pair.clone().sub_(MASK), lambda pair: False - pair,
])
def test_what_torch_refuses_is_refused(function):
    for x in (X, split_inputs()(X)):
        with pytest.raises(RuntimeError, match='bool'):
            function(x)


ELEMENTWISE = torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.fmax, torch.fmin
ORDERS = {
    'rows': lambda tensor: tensor, 'columns': lambda tensor: tensor.mT.contiguous().mT,
    'every second': lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
}
OPERANDS = strategies.tuples(
    strategies.sampled_from([(2, 3, 4), (3, 4), (1, 4), (3, 1), (1, 1), (2, 1, 1), (0, 4), (0, 1, 4)]),
    strategies.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8]),
    strategies.sampled_from(sorted(ORDERS)),
)


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(strategies.sampled_from(ELEMENTWISE), OPERANDS, OPERANDS, strategies.sampled_from([None, [0], [1]]))
def test_agreement_of_shapes_dtypes_and_orders(function, first, other, pairs):
    def operand(shape, dtype, order, seed):
        tensor = ORDERS[order](random_image(*shape, seed=seed))
        return tensor.to(dtype) if dtype.is_floating_point else tensor.abs().ceil().to(dtype)

    operands = operand(*first, 1), operand(*other, 2)
    count = sum(each.is_floating_point() for each in operands)
    try:
        function(*operands)
    except RuntimeError:
        hypothesis.reject()
    hypothesis.assume(count > 0 and (pairs is None or pairs[0] < count))
    is_pair = operands[1].is_floating_point() and (pairs is None or pairs[0] == count - 1)
    hypothesis.assume(function is not torch.div or not is_pair)  # which is no exact form
    require_agreement(function, *operands, pairs=pairs)


@pytest.mark.parametrize('function', [torch.maximum, torch.minimum, torch.fmax, torch.fmin])
def test_equal_ones_share_the_sum_as_they_share_the_gradient(function):
    equal, split = torch.tensor([1., 2., -3.]).requires_grad_(), split_inputs()
    share, _ = torch.autograd.grad(function(equal, other := equal.detach().clone().requires_grad_()).sum(),
                                   [equal, other])
    if share.unique().tolist() != [.5]:
        pytest.skip(f'torch {torch.__version__} gives the gradient of equal numbers to the first one')
    first, second = split(equal.detach()), split(equal.detach())
    first.values[1].requires_grad_()
    found, = torch.autograd.grad(function(first, second).values[1].sum(), first.values[1])
    assert torch.equal(found, share)
