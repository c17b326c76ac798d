'''Methods that hook modules: Guided Backprop, Deconvolution and Guided GradCAM, by Zennit's rules.

A hook sees no function outside of modules, such as ``torch.nn.functional.relu``: a :py:exc:`ValueError` names them.
'''
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import torch
import zennit.composites
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from zennit.attribution import Gradient
from zennit.rules import ReLUDeconvNet

from ..attribution import class_relevance, gradient_at, require_layer
from ..core.places import name_of, spread
from .captum import GradCAM
from .scores import Isolated, ScoreAttributor


RELUS = frozenset(('relu', 'relu_', 'relu6', 'hardtanh', 'hardtanh_', 'threshold', 'threshold_'))


class HookingAttributor(ScoreAttributor):
    '''Base class of the methods that hook modules.

    See :py:class:`ScoreAttributor` for the parameters.

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
        '''The hooked modules by their names.'''
        return {name: module for name, module in self.model.named_modules() if isinstance(module, torch.nn.ReLU)}

    def require_calls(self, calls):
        '''Raise if a method cannot be computed with these numbers of calls of its modules by their names.'''
        if not calls:
            raise ValueError(f'{self.title} acts on {self.modules} alone, but the model calls none')

    def predict(self, input):
        '''The model's output, see :py:meth:`ScoreAttributor.predict`.'''
        with watched(self.hooked(), self.functions) as watch:
            output = super().predict(input)
        if watch.outside:
            raise ValueError(
                f'{self.title} acts on {self.modules} alone, but the model calls {", ".join(sorted(watch.outside))}'
                ' outside of them'
            )
        self.require_calls(watch.calls)
        return output

    def isolated(self, output, relevance):
        '''The model as Captum shall call it, see :py:meth:`ScoreAttributor.isolated`.'''
        return Isolated(self.model, output.dtype, relevance, output)


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
    '''Guided Backprop: the gradient, rectified after each ReLU, by Zennit's composite, see
    :py:class:`HookingAttributor`.

    Parameters
    ----------
    model, attr_output
        See :py:class:`ScoreAttributor`.
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
    rules = zennit.composites.GuidedBackprop

    def __init__(
        self, model: torch.nn.Module, layer: str | None = None,
        attr_output: torch.Tensor | Callable | None = None, grid: tuple[int, ...] | None = None
    ):
        super().__init__(model, attr_output)
        if layer is not None:
            require_layer(model, layer)
        self.layer, self.grid = layer, grid

    def attribute(self, model, input, targets):
        '''The attribution, see :py:meth:`ScoreAttributor.attribute`.'''
        if self.layer is None:
            return Gradient(model, self.rules())(input, class_relevance(targets))[1]
        with self.rules().context(model):
            _, gradient, _ = gradient_at(model, f'model.{self.layer}', input, class_relevance(targets), self.grid)
        return spread(gradient.sum(1, keepdim=True), input)


class DeconvNet(zennit.composites.LayerMapComposite):
    '''The composite of Zennit's rule for Deconvolution.'''
    def __init__(self):
        super().__init__([((torch.nn.ReLU,), ReLUDeconvNet())])


class Deconvolution(GuidedBackprop):
    '''Deconvolution: each ReLU passes on the rectified gradient of its output, by Zennit's rule, see
    :py:class:`GuidedBackprop` for the parameters and errors.'''
    title = 'Deconvolution'
    rules = DeconvNet


class GuidedGradCAM(HookingAttributor, GradCAM):
    '''Guided Grad-CAM: Guided Backprop times the rectified Grad-CAM at a layer, which is upsampled to the nearest
    values, as is Captum's default.

    See :py:class:`GradCAM` and :py:class:`HookingAttributor` for the parameters and errors.
    '''
    title = 'Guided GradCAM'

    def attribute(self, model, input, targets):
        '''The attribution, see :py:meth:`ScoreAttributor.attribute`.'''
        cam = self.saliency(model, input, targets).relu()
        guided = Gradient(model, zennit.composites.GuidedBackprop())(input, class_relevance(targets))[1]
        return guided * F.interpolate(cam, input.shape[2:])
