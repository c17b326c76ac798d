'''Maps and figures as images.'''
import math
import textwrap
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image
from zennit.image import imgify

from .data.parts import atomic_write


COLUMN, SIDE, LETTERS = 2.4, 2.25, 26
'''The width of a figure's column and of the image in it, in inches, and the number of letters of a title that fit.'''
LINE, SMALL, SMALL_LETTERS = .18, .115, 50
'''The heights of a line of a title and of small letters, in inches, and the number of small letters that fit.'''


class Bar(NamedTuple):
    '''A color bar under a map.

    Parameters
    ----------
    largest : float
        The value at the color map's end.
    low, high : str
        What the two ends mean. Without ``low``, the bar begins with zero.
    is_clipped : bool
        Whether the map has larger values.
    '''
    largest: float
    low: str
    high: str
    is_clipped: bool = False


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
    saliency = finite(saliency)
    largest = (saliency.abs().max().item() if largest is None else largest) or 1.
    return imgify(saliency.clamp(-largest, largest).numpy(), vmin=-largest, vmax=largest, cmap=cmap)


def finite(saliency):
    '''A map in double precision on the CPU. Raise a FloatingPointError if it is not finite.'''
    saliency = saliency.detach().cpu().double()
    if not torch.isfinite(saliency).all():
        raise FloatingPointError('the map is not finite: check the input and the weights, or use a higher precision')
    return saliency


def largest_shown(saliency, percentile=100.):
    '''The value that gets the color map's end.

    Parameters
    ----------
    saliency : :py:class:`torch.Tensor`
        The map of shape (height, width).
    percentile : float, optional
        The percentage of the map's values, in (0, 100], whose absolute values are not larger.

    Returns
    -------
    float
        The smallest absolute value of the map that is not below so many, or the largest one if that is zero.

    Raises
    ------
    ValueError
        If the percentile is out of range.
    FloatingPointError
        If the map is not finite.
    '''
    if not 0. < percentile <= 100.:
        raise ValueError(f'the percentile must be in (0, 100], not {percentile!r}')
    values = finite(saliency).abs().flatten()
    return values.kthvalue(math.ceil(percentile / 100. * len(values))).values.item() or values.max().item()


def blend(photo, saliency, cmap='bwr', strength=.9, largest=None):
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
    largest : float, optional
        Another value for the color map's end, from which on the opacity is the same.

    Returns
    -------
    :py:class:`PIL.Image.Image`
        The image.

    Raises
    ------
    FloatingPointError
        If the map is not finite.
    '''
    colors = np.asarray(color(saliency, cmap, largest).convert('RGB')) / 255.
    size = finite(saliency).abs().numpy()
    opacity = strength * (size / (largest or size.max() or 1.)).clip(0., 1.)[..., None]
    gray = np.asarray(photo).mean(2, keepdims=True)
    return Image.fromarray(np.round(255. * (gray * (1. - opacity) + colors * opacity)).astype(np.uint8))


def caption(classifier, output, target, against=None):
    '''Name the predicted class with its probability, the explained one if it is another, and the classes that it is
    explained against.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    output : :py:class:`torch.Tensor`
        The scores of shape (classes,).
    target : int
        The explained class.
    against : {'none', 'others', 'likely'}, int or sequence of int, optional
        The classes that it is explained against, see :py:func:`~zennit_dc.attribution.contrast`. Default is none.
    '''
    probabilities = output.double().softmax(0)
    predicted = int(probabilities.argmax())
    lines = [f'{classifier.category(predicted)}, {probabilities[predicted]:.0%}']
    if target != predicted:
        lines.append(f'explained: {classifier.category(target)}, {probabilities[target]:.1%}')
    lines += rather_than(classifier, probabilities, target, against)
    together = (line.replace(' ...', '\N{NO-BREAK SPACE}...') for line in lines)
    return '\n'.join(textwrap.fill(line, LETTERS) for line in together).replace('\N{NO-BREAK SPACE}', ' ')


def rather_than(classifier, probabilities, target, against, most=3):
    '''The line of a caption that names the classes that a class is explained against, if there are any.'''
    if against is None or against == 'none':
        return []
    if against == 'others':
        return ['rather than all others']
    if against == 'likely':
        others = [index for index in probabilities.argsort(descending=True).tolist() if index != target]
    else:
        others = torch.as_tensor(against).flatten().tolist()
    names = ', '.join(classifier.category(index) for index in others[:most])
    return [f'rather than {names}{" ..." if len(others) > most else ""}']


def side_by_side(rows, heading=None, bars=None, cmap='bwr', notes=None, footer=None):
    '''A figure with one row for each image.

    Parameters
    ----------
    rows : list[tuple[str, image, dict[str, image]]]
        For each row a caption, an image and the colored maps by their titles. In place of a map, a text says why there
        is none.
    heading : str, optional
        The figure's heading.
    bars : list[dict[str, :py:class:`Bar`]], optional
        For each row, by the maps' titles, the color bars under them.
    cmap : str, optional
        Zennit's name of the maps' color map.
    notes : list[dict[str, str]], optional
        For each row, by the maps' titles, what to write under them in small letters.
    footer : str, optional
        What to write under all of them in small letters.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure`
        The figure.
    '''
    notes, bars = ([{} for _ in rows] if each is None else each for each in (notes, bars))
    width = COLUMN * (1 + len(rows[0][2]))
    heading = '\n'.join(textwrap.fill(line, int(LETTERS * width / COLUMN)) for line in (heading or '').split('\n'))
    heights = [height_of(row, own, any(bars)) for row, own in zip(rows, notes, strict=True)]
    footer = textwrap.fill(footer or '', int(SMALL_LETTERS * width / COLUMN))
    top = sum(heights) + (SMALL * lines_of(footer) + .1 if footer else 0.)
    height = top + (LINE * lines_of(heading) + .15 if heading else 0.)
    figure = Figure(figsize=(width, height))
    figure.suptitle(heading, fontsize='medium', y=1. - .06 / height, va='top')
    figure.text(.5, .05 / height, footer, fontsize='xx-small', ha='center', va='bottom')
    for row, own_bars, own_notes, own in zip(rows, bars, notes, heights, strict=True):
        text, photo, maps = row
        top, end = top - own, top - titles_of(row)
        for column, (title, image) in enumerate([(text, photo), *maps.items()]):
            left = column * COLUMN + .5 * (COLUMN - SIDE)
            axis = figure.add_axes([left / width, (end - SIDE) / height, SIDE / width, SIDE / height])
            draw(axis, title, image)
            if column and title in own_notes:
                axis.set_xlabel(own_notes[title], fontsize='xx-small')
            if column and title in own_bars:
                place = [(left + .07 * SIDE) / width, (top + .48) / height, .86 * SIDE / width, .08 / height]
                explain_colors(figure.add_axes(place, label='<colorbar>'), own_bars[title], cmap)
    return figure


def height_of(row, notes, has_bars):
    '''The height in inches of a row of a figure.'''
    noted = max(map(lines_of, notes.values()), default=0)
    return titles_of(row) + SIDE + (SMALL * noted + .1 if noted else 0.) + (.65 if has_bars else .1)


def titles_of(row):
    '''The height in inches of the titles of a row of a figure.'''
    return LINE * max(lines_of(fitting(title)) for title in (row[0], *row[2])) + .12


def lines_of(text):
    '''The number of lines of a text.'''
    return text.count('\n') + 1 if text else 0


def fitting(title):
    '''A title whose lines are no longer than a column is wide.'''
    return '\n'.join(textwrap.fill(line, LETTERS) for line in title.split('\n'))


def draw(axis, title, image):
    '''Draw an image with its title, or say why there is none.'''
    if isinstance(image, str):
        axis.imshow(np.ones((1, 1, 3)))
        axis.text(.5, .5, textwrap.fill(image, 30), transform=axis.transAxes, ha='center', va='center', size='x-small')
    else:
        axis.imshow(image.convert('RGB') if isinstance(image, Image.Image) else image)
    axis.set_title(fitting(title), fontsize='medium')
    axis.set(xticks=[], yticks=[])


def explain_colors(axis, bar, cmap):
    '''Draw a color bar that says which values Zennit's color map shows, and what its ends mean.'''
    colors = np.asarray(imgify(np.linspace(-1., 1., 255)[None], vmin=-1., vmax=1., cmap=cmap).convert('RGB'))[0] / 255.
    end, least = bar.largest or 1., -1. if bar.low else 0.
    shown = ListedColormap(colors if bar.low else colors[127:]).with_extremes(under=colors[0], over=colors[-1])
    extend = 'neither' if not bar.is_clipped else 'both' if bar.low else 'max'
    axis.figure.colorbar(
        ScalarMappable(Normalize(least * end, end), shown), cax=axis, orientation='horizontal', extend=extend,
        ticks=[each * end for each in sorted({least, 0., 1.})]
    )
    labels = [f'{number(-end)}\n{bar.low}'] if bar.low else []
    axis.set_xticklabels([*labels, '0', f'{number(end)}\n{bar.high}'], fontsize='x-small')
    for label, side in zip(axis.get_xticklabels(), [*(['left'] if bar.low else []), 'center', 'right']):
        label.set_horizontalalignment(side)


def number(value):
    '''A number of two digits, as people write it.'''
    return f'{value:.2g}'.replace('-', '−')


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


def save(figure, path):
    '''Save a figure in the format by which the path ends.'''
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=110, bbox_inches='tight')
