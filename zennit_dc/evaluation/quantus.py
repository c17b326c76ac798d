'''A bridge to Quantus, which measures explanations.'''
import re

import numpy as np
import torch

from ..attribution import class_relevance, require_evaluation, require_layer
from ..data.classifiers import IMAGENET_PREPROCESSING, Classifier, changed
from ..methods import METHODS, attributor


def explain(
    model, inputs, targets, method='SplitCAM', mean=None, std=None, abs=False, reduce='sum', device=None, **parameters
):
    '''Explain classes, as an ``explain_func`` of Quantus::

        from zennit_dc.evaluation.quantus import explain

        quantus.PixelFlipping()(
            model, x_batch, y_batch, explain_func=explain,
            explain_func_kwargs={'method': 'SplitCAM', 'layer': 'features.12', 'alpha': .4}
        )
        quantus.evaluate(
            metrics, {'SplitCAM': explain, 'LayerCAM@features.9': explain}, model, x_batch, y_batch,
            explain_func_kwargs={'layer': 'features.12'}
        )

    In ``quantus.evaluate`` the keys of ``xai_methods`` are the methods, whatever ``explain_func_kwargs`` says, and all
    of them get the same ``explain_func_kwargs``; for parameters that not all of them have, give it
    ``functools.partial(explain, alpha=.4)``.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model, in evaluation mode, from images of shape (batch, channels, height, width) to scores of shape (batch,
        classes).
    inputs : :py:class:`numpy.ndarray` or :py:class:`torch.Tensor`
        The images of shape (batch, channels, height, width), or one of shape (channels, height, width), normalized as
        the model needs them. They are moved to the device and dtype of its parameters.
    targets : int, sequence of int, :py:class:`numpy.ndarray` or :py:class:`torch.Tensor`
        The classes, of shape (batch,), or one for all images.
    method : str, optional
        A method's name or title in :py:data:`zennit_dc.methods.METHODS`. Case, spaces and hyphens do not matter:
        ``'SplitCAM'``, ``'LRP-γ'``, ``'lrp-gamma'``, ``'Integrated Gradients'``. ``'NAME@LAYER'`` names the layer as
        well, with precedence over the parameter, and ``'NAME@input'`` the input.
    mean, std : sequence of float, optional
        The mean and standard deviation of the images' normalization by channel, by which LRP-γ knows the range of their
        values. Default is ImageNet's.
    abs : bool, optional
        Whether to return absolute values (after the reduction).
    reduce : {'sum', None}, optional
        Whether to sum over channels.
    device : str or :py:class:`torch.device`, optional
        Where the images are moved to if the model has no parameters. Quantus gives it.
    **parameters
        The method's parameters, as ``layer``, ``alpha`` or ``stream``.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The maps of shape (batch, 1, height, width), or (batch, channels, height, width) if they are not reduced.

    Raises
    ------
    ValueError
        If there is no such method, parameter, layer or class, or the shapes do not fit.
    RuntimeError
        If the model is in training mode.
    '''
    if reduce not in ('sum', None):
        raise ValueError(f'reduce must be \'sum\' or None, not {reduce!r}')
    require_evaluation(model)
    name, at, layer = method.partition('@')
    name = method_name(name)
    if at:
        parameters = {key: value for key, value in parameters.items() if key != 'layer'}
        if layer != 'input':
            parameters['layer'] = layer
    if parameters.get('layer') is not None:
        require_layer(model, parameters['layer'])
    elif METHODS[name].needs_layer:
        raise ValueError(f'{METHODS[name].title} needs a layer: give the name of a module as \'layer\'')
    classifier = Classifier(type(model).__name__, model, changed(IMAGENET_PREPROCESSING(), None, mean, std))
    inputs, targets = batch_of(model, inputs, targets, device)
    attribution = attributor(name, classifier, **parameters)(inputs, class_relevance(targets))[1].detach()
    if reduce == 'sum':
        attribution = attribution.sum(1, keepdim=True)
    maps = attribution.cpu().to(torch.promote_types(attribution.dtype, torch.float32)).numpy()
    return np.abs(maps) if abs else maps.copy()


def method_name(method):
    '''The name in ``METHODS`` of a method that is given by its name or title, in any case and spelling.'''
    names = {plain(spelling): name for name, each in METHODS.items() for spelling in (name, each.title)}
    if plain(method) not in names:
        raise ValueError(f'there is no method {method!r}, but {", ".join(METHODS)}')
    return names[plain(method)]


def plain(name):
    '''The lower-case letters, digits and plus signs of a name.'''
    return re.sub(r'[^a-z0-9+]', '', name.lower().replace('γ', 'gamma').replace('×', 'x'))


def batch_of(model, inputs, targets, device):
    '''Images and classes as tensors with a batch axis, where the model is.

    Parameters
    ----------
    model, inputs, targets, device
        See :py:func:`explain`.

    Returns
    -------
    inputs : :py:class:`torch.Tensor`
        The images of shape (batch, channels, height, width).
    targets : :py:class:`torch.Tensor`
        The classes of shape (batch,).
    '''
    like = next(model.parameters(), torch.empty(0, device=device))
    inputs = torch.as_tensor(inputs).detach().to(like.device, like.dtype)
    inputs = inputs[None] if inputs.ndim == 3 else inputs
    if inputs.ndim != 4:
        raise ValueError(f'inputs must have the shape (batch, channels, height, width), not {tuple(inputs.shape)}')
    targets = torch.as_tensor(targets).detach().to(like.device, torch.int64)
    if targets.ndim and targets.shape != inputs.shape[:1]:
        raise ValueError(f'targets must have the shape {tuple(inputs.shape[:1])}, not {tuple(targets.shape)}')
    return inputs, targets.expand(len(inputs))
