'''Baselines of Captum that hook modules: Guided Backprop, Deconvolution, Guided GradCAM and DeepLift.

What Captum 0.9 computes without a warning and what is not the method is put right here, or refused:

- A hooked module's input that other modules read as well, or that is the output of another hooked module, as with a
  ReLU before a max-pooling: Captum hooks the tensor, and so alters the gradient of the others, or reads the one from
  before its own change. Each hooked module gets a copy of its input here.
- Functions outside of modules, such as ``torch.nn.functional.relu``, which Captum does not see: a :py:exc:`ValueError`
  names them.
- DeepLift's rule for max-pooling with overlapping windows, and what depends on other images of a batch: see
  :py:class:`DeepLift`.
'''
from collections import Counter
from contextlib import ExitStack, contextmanager

import torch
import zennit.composites
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..attribution import class_relevance, gradient_at, require_layer
from ..spatial import name_of, spread
from .captum import CaptumAttributor, GradCAM, Isolated


RELUS = frozenset(('relu', 'relu_', 'relu6', 'hardtanh', 'hardtanh_', 'threshold', 'threshold_'))
NONLINEAR = RELUS | frozenset((
    'celu', 'celu_', 'elu', 'elu_', 'gelu', 'glu', 'hardshrink', 'hardsigmoid', 'hardswish', 'leaky_relu',
    'leaky_relu_', 'log_softmax', 'logsigmoid', 'mish', 'prelu', 'rrelu', 'rrelu_', 'selu', 'selu_', 'sigmoid',
    'sigmoid_', 'silu', 'softmax', 'softmin', 'softplus', 'softshrink', 'softsign', 'tanh', 'tanh_', 'tanhshrink',
    *(f'{kind}max_pool{axes}d{end}' for kind in ('', 'adaptive_', 'fractional_') for axes in (1, 2, 3)
      for end in ('', '_with_indices')),
    'group_norm', 'instance_norm', 'layer_norm', 'local_response_norm', 'normalize', 'rms_norm',
    'multi_head_attention_forward', 'scaled_dot_product_attention',
))


class HookingAttributor(CaptumAttributor):
    '''Base class of the methods for which Captum hooks modules.

    See :py:class:`CaptumAttributor` for the parameters.

    Raises
    ------
    ValueError
        In a call, if the model uses functions outside of modules that the method has to see, or none of these modules;
        or if it depends on an activation's overwriting its input.
    '''
    title = ''
    functions = RELUS
    '''The names of functions that have to be in hooked modules.'''
    modules = 'torch.nn.ReLU'
    '''What is hooked, for people.'''

    def hooked(self):
        '''The modules that Captum hooks, by their names.'''
        return {name: module for name, module in self.model.named_modules() if isinstance(module, torch.nn.ReLU)}

    def require_calls(self, calls):
        '''Raise if a method cannot be computed with these numbers of calls of its modules by their names.'''
        if not calls:
            raise ValueError(f'{self.title} acts on {self.modules} alone, but the model calls none')

    def predict(self, input):
        '''The model's output, see :py:meth:`CaptumAttributor.predict`.'''
        with watched(self.hooked(), self.functions) as watch:
            output = super().predict(input)
        if watch.outside:
            raise ValueError(
                f'{self.title} acts on {self.modules} alone, but the model calls {", ".join(sorted(watch.outside))}'
                ' outside of them, where Captum would take the gradient'
            )
        self.require_calls(watch.calls)
        return output

    def isolated(self, output, relevance):
        '''The model as Captum shall call it, see :py:meth:`CaptumAttributor.isolated`.'''
        return Isolated(self.model, output.dtype, relevance, output)

    @contextmanager
    def prepared(self):
        '''A context in which each hooked module gets a copy of its input.'''
        modules = self.hooked().values()
        handles = [module.register_forward_pre_hook(copied) for module in modules]
        try:
            with super().prepared():
                yield
        finally:
            for handle in handles:
                handle.remove()
            for module in modules:
                for name in ('input', 'output'):
                    vars(module).pop(name, None)  # DeepLift leaves them where no gradient arrives, or an error does


def copied(module, args):
    '''Copies of a module's inputs, as a hook.'''
    return tuple(each.clone() if isinstance(each, torch.Tensor) else each for each in args)


class Watch(TorchFunctionMode):
    '''What a model calls.

    Parameters
    ----------
    functions : set[str]
        The names of functions to look for.
    '''
    def __init__(self, functions):
        super().__init__()
        self.functions = functions
        self.inside = 0
        self.outside = set()
        '''The names of those that were called outside of the watched modules.'''
        self.calls = Counter()
        '''How often each of the watched modules was called, by its name.'''

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = name_of(func)
        if not self.inside and name in self.functions:
            self.outside.add(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(modules, functions):
    '''A context in which a :py:class:`Watch` looks at modules, given by their names, and functions outside of them.'''
    watch = Watch(functions)

    def entered(name):
        def hook(module, args):
            watch.calls[name] += 1
            watch.inside += 1
        return hook

    def left(module, args, output):
        watch.inside -= 1

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(entered(name)).remove)
            stack.callback(module.register_forward_hook(left).remove)
        stack.enter_context(watch)
        yield watch


class GuidedBackprop(HookingAttributor):
    '''Guided Backprop: the gradient, rectified after each ReLU, see :py:class:`HookingAttributor`.

    Captum has it at the input. At a layer, it equals Zennit's composite of the same name.

    Parameters
    ----------
    model, attr_output
        See :py:class:`CaptumAttributor`.
    layer : str, optional
        The name of the module at whose output, with spatial axes or a grid of tokens, the gradient is read and summed
        over channels: after an activation, if the output goes straight into one and nowhere else. The attribution is
        then its bilinear upsampling to the input's size, divided evenly among the input's channels. Default is the
        input.
    grid : tuple of int, optional
        The height and width of the grid of tokens, where they cannot be found from the input's.

    Raises
    ------
    ValueError
        If the model has no such module, or in a call, if its output is not one tensor with places in the input.
    '''
    title = 'Guided Backprop'

    def __init__(self, model, layer=None, attr_output=None, grid=None):
        super().__init__(model, attr_output)
        if layer is not None:
            require_layer(model, layer)
        self.layer, self.grid = layer, grid

    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        if self.layer is None:
            return captum.GuidedBackprop(model).attribute(input, targets)
        with zennit.composites.GuidedBackprop().context(model):
            _, gradient, _ = gradient_at(model, f'model.{self.layer}', input, class_relevance(targets), self.grid)
        return spread(gradient.sum(1, keepdim=True), input)


class Deconvolution(HookingAttributor):
    '''Deconvolution: each ReLU passes on the rectified gradient of its output, see :py:class:`HookingAttributor`.'''
    title = 'Deconvolution'

    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return captum.Deconvolution(model).attribute(input, targets)


class GuidedGradCAM(HookingAttributor, GradCAM):
    '''Guided Grad-CAM: Guided Backprop times the rectified Grad-CAM at a layer, which is upsampled to the nearest
    values, as is Captum's default.

    See :py:class:`GradCAM` and :py:class:`HookingAttributor` for the parameters and errors.
    '''
    title = 'Guided GradCAM'

    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        cam = self.saliency(model, input, targets).relu()
        return captum.GuidedBackprop(model).attribute(input, targets) * F.interpolate(cam, input.shape[2:])


class DeepLift(HookingAttributor):
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
        '''A context in which max-pooling has a rule that sums up.'''
        from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

        poolings = (torch.nn.MaxPool1d, torch.nn.MaxPool2d, torch.nn.MaxPool3d)
        rules = {kind: SUPPORTED_NON_LINEAR[kind] for kind in poolings}
        SUPPORTED_NON_LINEAR.update(dict.fromkeys(poolings, rescaled_pooling))
        try:
            with super().prepared():
                yield
        finally:
            SUPPORTED_NON_LINEAR.update(rules)

    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return captum.DeepLift(model).attribute(input, target=targets)


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
