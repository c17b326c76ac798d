'''The methods by name, each as an attributor of Zennit: SplitGrad, SplitCAM and SplitLRP, and what to compare with.

The table itself needs no PyTorch: the command line's help, which takes the methods from it, is there at once.
'''
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..core.wording import meant, similar


if TYPE_CHECKING:  # as they take long to import
    from torch import Tensor
    from zennit.attribution import Attributor

    from ..data import Classifier


RECENTERINGS = ('relative', 'scaling', 'shifting', 'none')
'''The names of the forward stabilisations.'''


def recentering_named(name: str) -> Callable | None:
    '''The forward stabilisation of a name.

    Parameters
    ----------
    name : str
        A name in :py:data:`RECENTERINGS`, or ``'relative:RHO'``.

    Returns
    -------
    callable or None
        The re-centering, as composites take it.

    Raises
    ------
    ValueError
        If there is none of this name, or if rho is not a number from 0 on.
    '''
    from ..recentering import Relative, Scaling, Shifting

    kind, colon, rho = name.partition(':')
    if kind not in RECENTERINGS or (colon and kind != 'relative'):
        raise ValueError(f'there is no re-centering {name!r}, but relative[:RHO], {", ".join(RECENTERINGS[1:])}')
    if colon:
        return Relative(float(rho))
    return {'relative': Relative, 'scaling': Scaling, 'shifting': Shifting, 'none': lambda: None}[kind]()


class Method(NamedTuple):
    '''A method.

    Parameters
    ----------
    title : str
        Its name for people.
    attributor : callable
        A function of the classifier and of keyword parameters that returns an attributor of Zennit.
    parameters : tuple[str, ...]
        The names of the parameters that it takes.
    streams : tuple[str, ...]
        The values of its parameter ``stream``.
    needs_layer : bool
        Whether it has maps at a layer alone.
    explains_loss : bool
        Whether it explains the loss of a class, which is a contrast to the likely classes by itself and takes no other.
    '''
    title: str
    attributor: Callable
    parameters: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    needs_layer: bool = False
    explains_loss: bool = False


def lrp(name, classifier, **parameters):
    '''Zennit's LRP, by its name in :py:mod:`zennit_dc.methods.lrp`, whose canonizers depend on the classifier.'''
    from . import lrp as attributors

    return getattr(attributors, name)(classifier, **parameters)


def plain(name, classifier, **parameters):
    '''An attributor of the model as it is, by its name in :py:mod:`zennit_dc.methods.attributors`.'''
    from . import attributors

    return getattr(attributors, name)(classifier.model, **parameters)


def split(name, classifier, **parameters):
    '''A composite for the model in split form, by its name.'''
    from . import attributors

    return attributors.Gradient(classifier.model, getattr(attributors, name)(**parameters))


def smooth(name, classifier, samples=20, seed=0, **parameters):
    '''An attributor of noisy copies, by its name, whose noise depends on the image and a seed alone.'''
    from .seeding import Seeded

    return Seeded(plain(name, classifier, n_iter=samples, **parameters), seed)


FIRST_ORDER, SECOND_ORDER, COPIES = ('penalty', 'classes'), ('penalty', 'margin', 'classes'), ('samples', 'seed')
SENSITIVITY = ('layer', 'alpha', 'stream', 'pooling', 'recentering', 'input_split', 'canonizers', 'grid')
RELEVANCE = ('layer', 'epsilon', 'stream', 'pooling', 'recentering', 'input_split', 'canonizers', 'grid')
STREAMS = ('+g', '-g', 'g', '+h', '-h', 'h')
METHODS = {
    'gradient': Method('Gradient', partial(plain, 'Gradient')),
    'layercam': Method('LayerCAM', partial(plain, 'LayerCAM'), ('layer', 'grid'), needs_layer=True),
    'lrp-gamma': Method('LRP-γ', partial(lrp, 'LRPGamma'), ('layer', 'grid')),
    'lrp-epsilon-plus': Method('EpsilonPlus', partial(lrp, 'LRPEpsilonPlus'), ('layer', 'grid')),
    'splitgrad': Method('SplitGrad', partial(split, 'SplitGrad'), SENSITIVITY, STREAMS),
    'splitcam': Method('SplitCAM', partial(split, 'SplitCAM'), SENSITIVITY, STREAMS, needs_layer=True),
    # the composite's default is the paper's combined relevance, whose sign at the input is the pixel's own
    'splitlrp': Method(
        'SplitLRP', partial(split, 'SplitLRP', stream='positive'), RELEVANCE, ('positive', 'negative', 'combined')
    ),
    'saliency': Method('Saliency', partial(plain, 'Saliency')),
    'input-x-gradient': Method('Input × Gradient', partial(plain, 'InputXGradient')),
    'integrated-gradients': Method('Integrated Gradients', partial(plain, 'IntegratedGradients'), ('steps',)),
    'gradient-shap': Method('Gradient SHAP', partial(plain, 'GradientSHAP'), ('samples', 'seed')),
    'deeplift': Method('DeepLift', partial(plain, 'DeepLift')),
    'guided-backprop': Method('Guided Backprop', partial(plain, 'GuidedBackprop'), ('layer', 'grid')),
    'deconvolution': Method('Deconvolution', partial(plain, 'Deconvolution')),
    'guided-gradcam': Method('Guided GradCAM', partial(plain, 'GuidedGradCAM'), ('layer', 'grid'), needs_layer=True),
    'occlusion': Method('Occlusion', partial(plain, 'Occlusion'), ('window', 'stride')),
    'feature-ablation': Method('Feature Ablation', partial(plain, 'FeatureAblation'), ('patch',)),
    'gradcam': Method('GradCAM', partial(plain, 'GradCAM'), ('layer', 'grid'), needs_layer=True),
    'gradcam++': Method('GradCAM++', partial(plain, 'GradCAMPlusPlus'), ('layer', 'grid'), needs_layer=True),
    'cafo': Method('CAFO', partial(plain, 'CAFO'), FIRST_ORDER, explains_loss=True),
    'caso': Method('CASO', partial(plain, 'CASO'), SECOND_ORDER, explains_loss=True),
    'smooth-cafo': Method('SmoothCAFO', partial(smooth, 'SmoothCAFO'), (*FIRST_ORDER, *COPIES), explains_loss=True),
    'smooth-caso': Method('SmoothCASO', partial(smooth, 'SmoothCASO'), (*SECOND_ORDER, *COPIES), explains_loss=True),
    'random': Method('Random Baseline', partial(plain, 'Random'), ('seed',)),
    'original-image': Method('Original Image', partial(plain, 'OriginalImage')),
    'image-center': Method('Image Center', partial(plain, 'ImageCenter')),
    'binary-mask': Method('Binary Mask', partial(plain, 'BinaryMask'), ('masks',)),
}
CONTROLS = ('random', 'original-image', 'image-center', 'binary-mask')
BASELINES = ('gradient', 'layercam', 'lrp-gamma@input')


def method_named(name: str) -> Method:
    '''The method of a name, or a ValueError that says which one may have been meant.'''
    if name not in METHODS:
        raise ValueError(f'there is no method {name!r}{meant(name, METHODS)}')
    return METHODS[name]


def attributor(method: str, classifier: 'Classifier', **parameters: object) -> 'Attributor':
    '''The attributor of a method.

    Parameters
    ----------
    method : str
        A name in ``METHODS``.
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    **parameters
        The method's parameters, by the names that its composite or attributor has for them, and with its defaults; but
        SplitLRP's stream is ``'positive'`` by default.

    Returns
    -------
    :py:class:`zennit.attribution.Attributor`
        The attributor.

    Raises
    ------
    ValueError
        If there is no such method, parameter or layer, or a layer is missing.
    '''
    chosen = method_named(method)
    unknown = sorted(set(parameters) - set(chosen.parameters))
    if unknown:
        raise ValueError(f'{chosen.title} has no parameter {unknown[0]!r}')
    if 'masks' in chosen.parameters and 'masks' not in parameters:
        raise ValueError(f'{chosen.title} needs the masks of the images, which `zennit-dc evaluate` has')
    layer = parameters.get('layer')
    if layer is None and chosen.needs_layer:
        raise ValueError(
            f'{chosen.title} needs a layer: name one with --layer; `zennit-dc layers {classifier.name}` lists them'
        )
    if layer is not None:
        require_layer(classifier, layer)
    return chosen.attributor(classifier, **parameters)


def require_layer(classifier, layer):
    '''Raise a ValueError if a classifier's model has no module of a name.'''
    modules = [name for name, _ in classifier.model.named_modules() if name]
    if layer not in modules:
        raise ValueError(
            f'{classifier.name} has no layer {layer!r}{similar(layer, modules) or ":"} `zennit-dc layers'
            f' {classifier.name}` lists them'
        )


def saliency_map(
    attributor: 'Attributor', input: 'Tensor', target: 'int | Tensor | None' = None,
    against: str | int | Sequence[int] | None = None
) -> 'tuple[Tensor, Tensor]':
    '''Explain a class.

    Parameters
    ----------
    attributor : :py:class:`zennit.attribution.Attributor`
        The method.
    input : :py:class:`torch.Tensor`
        The input of shape (batch, channels, height, width).
    target : int or :py:class:`torch.Tensor`, optional
        The class, or one class for each image. Default is the class with the largest output.
    against : {'none', 'others', 'likely'}, int or sequence of int, optional
        The classes to explain this class against, see :py:func:`~zennit_dc.attribution.contrast`. Default is none.

    Returns
    -------
    output : :py:class:`torch.Tensor`
        The model's output of shape (batch, classes).
    map : :py:class:`torch.Tensor`
        The attribution summed over channels, of shape (batch, height, width).
    '''
    from ..attribution import relevance_of

    if isinstance(target, int) and not -2 ** 63 <= target < 2 ** 63:
        raise ValueError(f'there is no class {target}')  # nor a tensor that could hold it
    output, attribution = attributor(input, relevance_of(target, against))
    return output.detach(), attribution.detach().sum(1)
