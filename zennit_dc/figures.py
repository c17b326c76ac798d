'''Maps and figures as images.'''
import textwrap

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image
from zennit.attribution import Gradient
from zennit.image import imgify

from .attribution import map_cosine, relevance_of, runner_up
from .composites import SplitGrad
from .data.parts import atomic_write
from .rules import Balanced


SAME = .95
'''The cosine of two classes\' maps above which a map is not about the class.'''


def color(saliency, cmap='bwr', largest=None):
    '''Color a map by a color map of Zennit that is symmetric around zero.

    Parameters
    ----------
    saliency : :py:class:`torch.Tensor`
        The map of shape (height, width). Its largest absolute value gets the color map's end, and zero its center.
    cmap : str, optional
        Zennit's name of the color map, or its code.
    largest : float, optional
        Another value for the color map's end, by which maps can be compared.

    Returns
    -------
    :py:class:`PIL.Image.Image`
        The image, with a palette.

    Raises
    ------
    FloatingPointError
        If the map is not finite.
    '''
    saliency = saliency.detach().cpu().double()
    if not torch.isfinite(saliency).all():
        raise FloatingPointError('the map is not finite: check the input and the weights, or use a higher precision')
    largest = (saliency.abs().max().item() if largest is None else largest) or 1.
    return imgify(saliency.numpy(), vmin=-largest, vmax=largest, cmap=cmap)


def blend(photo, saliency, cmap='bwr', strength=.9):
    '''Lay a map over a photograph in gray: the larger its absolute value, the less of the photograph is seen.

    Parameters
    ----------
    photo : :py:class:`numpy.ndarray`
        RGB values in [0, 1] of shape (height, width, 3).
    saliency : :py:class:`torch.Tensor`
        The map of shape (height, width).
    cmap : str, optional
        Zennit's name of the color map.
    strength : float, optional
        The opacity of the largest absolute value, in [0, 1].

    Returns
    -------
    :py:class:`PIL.Image.Image`
        The image.

    Raises
    ------
    FloatingPointError
        If the map is not finite.
    '''
    colors = np.asarray(color(saliency, cmap).convert('RGB')) / 255.
    size = saliency.detach().abs().cpu().double().numpy()
    opacity = strength * (size / (size.max() or 1.))[..., None]
    gray = np.asarray(photo).mean(2, keepdims=True)
    return Image.fromarray(np.round(255. * (gray * (1. - opacity) + colors * opacity)).astype(np.uint8))


def caption(classifier, output, target):
    '''Name the predicted class with its probability, and the explained one if it is another.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    output : :py:class:`torch.Tensor`
        The scores of shape (classes,).
    target : int
        The explained class.
    '''
    probabilities = output.double().softmax(0)
    predicted = int(probabilities.argmax())
    lines = [f'{classifier.category(predicted)}, {probabilities[predicted]:.0%}']
    if target != predicted:
        lines.append(f'explained: {classifier.category(target)}, {probabilities[target]:.1%}')
    return '\n'.join(textwrap.fill(line, 24) for line in lines)


def side_by_side(rows, heading=None, legends=None, cmap='bwr', notes=None):
    '''A figure with one row for each image.

    Parameters
    ----------
    rows : list[tuple[str, image, dict[str, image]]]
        For each row a caption, an image and the colored maps by their titles.
    heading : str, optional
        The figure's heading.
    legends : dict[str, tuple[str, str]], optional
        By the maps' titles, what the two ends of the color map mean, which a color bar below them then says.
    cmap : str, optional
        Zennit's name of the maps' color map.
    notes : list[dict[str, str]], optional
        For each row, by the maps' titles, what to write under them in small letters.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure`
        The figure.
    '''
    notes = [{} for _ in rows] if notes is None else notes
    columns = 1 + len(rows[0][2])
    height = 2.3 + .2 * max(text.count('\n') + 1 for text, *_ in rows)
    height += .12 * max((note.count('\n') + 1 for own in notes for note in own.values()), default=0)
    figure = Figure(figsize=(2.2 * columns, height * len(rows) + (.8 if legends else .4)), layout='compressed')
    figure.suptitle(heading, fontsize='medium', wrap=True)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (text, photo, maps), own, row in zip(rows, notes, axes, strict=True):
        for axis, title, image in zip(row, [text, *maps], [photo, *maps.values()], strict=True):
            axis.imshow(image.convert('RGB') if isinstance(image, Image.Image) else image)
            axis.set_title(title, fontsize='medium')
            axis.set(xticks=[], yticks=[])
        for axis, title in zip(row[1:], maps):
            axis.set_xlabel(own.get(title, ''), fontsize='xx-small')
    if legends:
        for column, title in enumerate([None, *rows[0][2]]):
            explain_colors(figure, axes[:, column], legends.get(title), cmap)
    return figure


def explain_colors(figure, axes, ends, cmap):
    '''Add a color bar below axes that says what the ends of Zennit's color map mean, or leave its place free.'''
    colors = np.asarray(imgify(np.linspace(-1., 1., 256)[None], vmin=-1., vmax=1., cmap=cmap).convert('RGB'))[0] / 255.
    mappable = ScalarMappable(Normalize(-1., 1.), ListedColormap(colors))
    bar = figure.colorbar(mappable, ax=axes, location='bottom', aspect=25, pad=.02, ticks=[-1., 0., 1.])
    if ends is None:
        bar.ax.set_visible(False)
        return
    low, high = ends
    bar.ax.set_xticklabels([low, '0', high], fontsize='x-small')
    bar.ax.get_xticklabels()[0].set_horizontalalignment('left')
    bar.ax.get_xticklabels()[2].set_horizontalalignment('right')


def stream_overlay(image, g, h, threshold=.2, decay=.1, largest=None):
    '''Show two streams over an image (figures 3 and 8): g in red and h in blue.

    Values above the threshold are shown. The more of them are larger, the paler a value is, with an exponential decay:
    it is opaque by :math:`\\exp(-r / (d n))`, for the rank r among the shown values of both maps, which begins with
    zero, the number n of pixels, and the decay d.

    Parameters
    ----------
    image : :py:class:`torch.Tensor`
        The gray image of shape (height, width) with values in [0, 1].
    g, h : :py:class:`torch.Tensor`
        The maps of the same shape, in red and blue.
    threshold : float, optional
        The smallest value to be shown, as a share of the largest one.
    decay : float, optional
        The share of the pixels by which the opacity falls to 1 / e.
    largest : float, optional
        The largest value, by which maps are compared. Default is the largest of the two maps.

    Returns
    -------
    :py:class:`torch.Tensor`
        The colors of shape (height, width, 3), in [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ, or the threshold or decay is out of range.
    FloatingPointError
        If a map is not finite.
    '''
    if image.ndim != 2 or not image.shape == g.shape == h.shape:
        raise ValueError(
            f'image and maps must have one shape (height, width), not {tuple(image.shape)}, {tuple(g.shape)} and'
            f' {tuple(h.shape)}'
        )
    if not 0. <= threshold <= 1. or not decay > 0.:
        raise ValueError(f'the threshold must be in [0, 1] and the decay positive, not {threshold!r} and {decay!r}')
    maps = torch.stack([g, h]).detach().cpu().double()
    if not torch.isfinite(maps).all():
        raise FloatingPointError('a map is not finite: check the input and the weights, or use a higher precision')
    largest = maps.max().item() if largest is None else largest
    shown = (maps > 0.) & (maps >= threshold * largest)
    values = maps.masked_fill(~shown, 0.).flatten()
    ranks = values.argsort(descending=True, stable=True).argsort().reshape(maps.shape)
    red, blue = torch.where(shown, torch.exp(-ranks.double() / (decay * image.numel())), 0.)
    # what covers the image leaves its color there alone
    colors = image.detach().cpu().double() * (1. - red) * (1. - blue)
    both = 1. - (1. - red) * (1. - blue)
    return torch.stack([colors + red * both / (red + blue).clamp(min=1e-12), colors,
                        colors + blue * both / (red + blue).clamp(min=1e-12)], -1).clamp(0., 1.)


def concept_gallery(classifier, inputs, target, alpha=Balanced(), against=None):
    '''What a network has learned of a class (figure 5): the gradients of the streams g and h of the class's score at
    several images. They are vertices of the imaginative polytopes (appendix A.2), and so prototypes of the class.

    With a number for alpha, as .25 in the paper, these gradients can be the same for all classes of a deep network:
    they then show the image's outlines. The figure's heading says so where the gradient of g has a mean cosine above
    .95 to the gradient for the likeliest other class.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    inputs : :py:class:`torch.Tensor`
        Normalized images of shape (count, channels, height, width).
    target : int
        The class.
    alpha : float or :py:class:`~zennit_dc.Balanced`, optional
        The shift of :py:class:`~zennit_dc.SplitGrad`.
    against : {'none', 'others', 'likely'}, int or sequence of int, optional
        The classes to explain it against, see :py:func:`~zennit_dc.attribution.contrast`. Default is none.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure`
        The figure, with a row for each image: the image, and the gradients of g and h, summed over the channels.

    Raises
    ------
    ValueError
        If there are no images, or the classifier does not have the class.
    FloatingPointError
        If a gradient is not finite.
    '''
    if inputs.ndim != 4 or not len(inputs):
        raise ValueError(
            f'the images must have the shape (count, channels, height, width), with a count of at least one, not'
            f' {tuple(inputs.shape)}'
        )
    gradients = {}
    for stream in ('g', 'h'):
        composite = SplitGrad(alpha, stream)
        with Gradient(classifier.model, composite, relevance_of(target, against)) as attributor:
            outputs, gradients[f'gradient of {stream}'] = attributor(inputs)
    others = [runner_up(output, target, against) for output in outputs]
    with Gradient(classifier.model, SplitGrad(alpha), relevance_of(others, against)) as attributor:
        agreement = 0. if None in others else map_cosine(attributor(inputs)[1], gradients['gradient of g']).mean()
    heading = f'Prototypes of {classifier.category(target)}, α = {alpha}'
    if agreement > SAME:
        heading += f'\nnearly the same for other classes (cosine {agreement:.2f}): not about this class'
    return side_by_side([
        (
            caption(classifier, output, target), classifier.pixels(input).numpy(),
            {title: color(gradient[index].sum(0)) for title, gradient in gradients.items()},
        )
        for index, (input, output) in enumerate(zip(inputs, outputs))
    ], heading)


def save(figure, path):
    '''Save a figure in the format by which the path ends.'''
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=110, bbox_inches='tight')
