'''Batches of gradients, and transforms of functions, of which split pairs know nothing.'''
import torch
from torch.autograd import forward_ad


ONE_BY_ONE = (
    'take the map of one output after the other, in a loop of torch.autograd.grad(output, input, gradient,'
    ' retain_graph=True) or with torch.autograd.functional.jacobian(..., vectorize=False)'
)


def refuse_batched(*gradients):
    '''Raise if gradients stand for several at once.

    Parameters
    ----------
    *gradients : :py:class:`torch.Tensor`
        The gradients that enter at an output.

    Raises
    ------
    NotImplementedError
        If one of them is a batch of gradients, or a transform of :py:mod:`torch.func` is active.
    '''
    if any(torch._C._functorch.is_legacy_batchedtensor(gradient) for gradient in gradients):
        kind = 'several gradients in one backward pass (is_grads_batched=True, or vectorize=True)'
        raise NotImplementedError(f'a model in split form has no map for {kind}: {ONE_BY_ONE}')
    refuse_transforms()


def refuse_transforms(*inputs):
    '''Raise if a transform of functions is active, or inputs carry tangents of a forward-mode derivative.

    Parameters
    ----------
    *inputs : :py:class:`torch.Tensor`
        The inputs of a model.

    Raises
    ------
    NotImplementedError
        If there is one.
    '''
    if torch._C._are_functorch_transforms_active():
        kind = 'torch.func (grad, vjp, jacrev, jacfwd, jvp, vmap and the like)'
    elif any(forward_ad.unpack_dual(input).tangent is not None for input in inputs if has_level()):
        kind = 'forward-mode derivatives (torch.autograd.forward_ad, or strategy=\'forward-mode\')'
    else:
        return
    raise NotImplementedError(f'a model in split form has no map within {kind}: {ONE_BY_ONE}')


def has_level():
    '''Whether a forward-mode derivative is being computed.'''
    return forward_ad._current_level >= 0
