'''Captum's DeepLift, repaired: what Captum 0.9 computes without a warning and what is not the method.

- Of what overlapping windows of a max-pooling give to the same pixel, Captum keeps one: :py:func:`rescaled_pooling`
  adds it up, until Captum does.
- A hooked module's input that other modules read as well, or that is the output of another hooked module, as with a
  ReLU before a max-pooling: Captum hooks the tensor, and so alters the gradient of the others, or reads the one from
  before its own change. Each hooked module gets a copy of its input here.
- What depends on other images of a batch: see :py:class:`DeepLift`.
'''
from contextlib import contextmanager

import torch

from .captum import CaptumAttributor
from .hooked import RELUS, HookingAttributor


NONLINEAR = RELUS | frozenset((
    'celu', 'celu_', 'elu', 'elu_', 'gelu', 'glu', 'hardshrink', 'hardsigmoid', 'hardswish', 'leaky_relu',
    'leaky_relu_', 'log_softmax', 'logsigmoid', 'mish', 'prelu', 'rrelu', 'rrelu_', 'selu', 'selu_', 'sigmoid',
    'sigmoid_', 'silu', 'softmax', 'softmin', 'softplus', 'softshrink', 'softsign', 'tanh', 'tanh_', 'tanhshrink',
    *(f'{kind}max_pool{axes}d{end}' for kind in ('', 'adaptive_', 'fractional_') for axes in (1, 2, 3)
      for end in ('', '_with_indices')),
    'group_norm', 'instance_norm', 'layer_norm', 'local_response_norm', 'normalize', 'rms_norm',
    'multi_head_attention_forward', 'scaled_dot_product_attention',
))


class DeepLift(HookingAttributor, CaptumAttributor):
    '''DeepLift with the rescale rule and zeros as the reference, see :py:class:`HookingAttributor`.

    It takes models of ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, Softmax and MaxPool as modules of PyTorch, each
    called once, and operations that are linear in evaluation mode. (The product of two activations is not linear, and
    cannot be detected here.)

    Images are given to Captum one at a time, as it takes the gradients of the first image of a batch for pixels in
    which a max-pooling's input does not differ from the reference's, and subtracts a mean over the batch in Softmax.
    Captum's rule for max-pooling is replaced by one that adds up what overlapping windows give to the same pixel, of
    which Captum keeps one, so that the attributions sum up to the difference of the scores.

    Raises
    ------
    ValueError
        In a call, if a module is called more than once, as in torchvision's ResNet, or there are other non-linear
        functions.
    '''
    title = 'DeepLift'
    functions = NONLINEAR
    modules = 'torch.nn.ReLU and the like'
    one_by_one = True

    def hooked(self):
        '''The modules that Captum hooks, by their names.'''
        from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

        return {name: module for name, module in self.model.named_modules() if type(module) in SUPPORTED_NON_LINEAR}

    def require_calls(self, calls):
        '''Raise if a module is called more than once.'''
        for name, number in calls.items():
            if number > 1:
                raise ValueError(
                    f'DeepLift needs a module of its own for each call, but the model calls {name!r} {number} times'
                )

    @contextmanager
    def prepared(self):
        '''A context in which each hooked module gets a copy of its input, and max-pooling has a rule that sums up.'''
        from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

        poolings = (torch.nn.MaxPool1d, torch.nn.MaxPool2d, torch.nn.MaxPool3d)
        rules = {kind: SUPPORTED_NON_LINEAR[kind] for kind in poolings}
        SUPPORTED_NON_LINEAR.update(dict.fromkeys(poolings, rescaled_pooling))
        modules = self.hooked().values()
        handles = [module.register_forward_pre_hook(copied) for module in modules]
        try:
            with super().prepared():
                yield
        finally:
            SUPPORTED_NON_LINEAR.update(rules)
            for handle in handles:
                handle.remove()
            for module in modules:
                for name in ('input', 'output'):
                    vars(module).pop(name, None)  # Captum leaves them where no gradient arrives, or an error does

    def attribute(self, model, input, targets):
        '''The attribution, see :py:meth:`ScoreAttributor.attribute`.'''
        return self.captum.DeepLift(model).attribute(input, target=targets)


def copied(module, args):
    '''Copies of a module's inputs, as a hook.'''
    return tuple(each.clone() if isinstance(each, torch.Tensor) else each for each in args)


def rescaled_pooling(module, inputs, outputs, grad_input, grad_output, eps=1e-10):
    '''DeepLift's multipliers of a max-pooling, as Captum calls for them.

    What the larger one of the two outputs is above the reference's goes to the winner of the input, and what the output
    is below it to the winner of the reference, summed over all windows.

    Parameters
    ----------
    module : :py:class:`torch.nn.Module`
        The max-pooling.
    inputs, outputs : :py:class:`torch.Tensor`
        Its input and output, each for the image and then for the reference.
    grad_input, grad_output : :py:class:`torch.Tensor`
        The gradient of its input, and the multipliers of its output.
    eps : float, optional
        The difference of inputs below which the gradient is taken.

    Returns
    -------
    :py:class:`torch.Tensor`
        The multipliers of the input.
    '''
    output, reference = outputs.chunk(2)
    larger = torch.maximum(output, reference)
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_()
        contributions, = torch.autograd.grad(
            type(module).forward(module, leaf), leaf, grad_output * torch.cat([larger - reference, output - larger])
        )
    contribution = sum(contributions.chunk(2))
    difference = torch.sub(*inputs.chunk(2))
    multipliers = contribution / torch.where(difference.abs() < eps, 1., difference)
    return torch.where(torch.cat([difference, difference]).abs() < eps, grad_input, torch.cat([multipliers] * 2))
