'''Figures of an evaluation.'''
from matplotlib.figure import Figure

from ..figures import caption, color, side_by_side
from ..methods import METHODS, attributor, saliency_map
from .metrics import METRICS
from .selection import means


def layer_figure(scores, settings, chosen):
    '''The scores of methods at different layers (figure 7), each divided by the method's own range.

    Parameters
    ----------
    scores : :py:class:`pandas.DataFrame`
        The scores of all settings, see :py:func:`zennit_dc.evaluation.selection.means`.
    settings : list[:py:class:`~zennit_dc.evaluation.settings.Setting`]
        The settings.
    chosen : list[:py:class:`~zennit_dc.evaluation.settings.Setting`]
        Those whose layer is varied, while their other parameters stay as they are. Settings without a layer, and those
        that were scored at no other one, are left out.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure` or None
        The figure, with the layers in the order in which the settings have them, but the input first, and the lowest
        and the highest mean score by each metric in the legend; None if no setting is left.
    '''
    table, curves = means(scores), {}
    for setting in chosen:
        if 'layer' in dict(setting.parameters):
            own = {dict(each.parameters)['layer']: each for each in settings
                   if each.method == setting.method and each.replaced(layer='') == setting.replaced(layer='')}
            if len(own) > 1:
                others = setting._replace(
                    parameters=tuple(each for each in setting.parameters if each[0] != 'layer')
                )
                curves[f'{setting.title} {others.name}'.strip()] = own
    if not curves:
        return None
    parameters = [dict(setting.parameters) for setting in settings]
    layers = dict.fromkeys(each['layer'] for each in parameters if 'layer' in each)
    layers = sorted(layers, key=lambda layer: layer is not None)
    metrics, ranges = [metric for metric in METRICS if metric in table], []
    figure = Figure(figsize=(3.2 * len(metrics), 3.4 + .22 * len(curves)), layout='constrained')
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        for style, own in zip(styles(), curves.values()):
            values = [table.loc[(own[layer].title, own[layer].name), metric] for layer in layers if layer in own]
            low, high = min(values), max(values)
            places = [place for place, layer in enumerate(layers) if layer in own]
            axis.plot(places, [(value - low) / ((high - low) or 1.) for value in values], **style)
            ranges.append(f'{low:.2f} – {high:.2f}')
        axis.set_title(f'{METRICS[metric].title} {"↑" if METRICS[metric].larger_is_better else "↓"}')
        axis.set_xticks(range(len(layers)), [layer or 'input' for layer in layers], rotation=45, ha='right')
        axis.set_yticks([0., 1.], ['lowest', 'highest'])
    labels = [f'{title}:  {",  ".join(ranges[row::len(curves)])}' for row, title in enumerate(curves)]
    figure.legend(axis.get_lines(), labels, loc='outside lower center', fontsize='small')
    return figure


def styles():
    '''Styles of lines that can be told apart.'''
    for number in range(40):
        yield {'color': f'C{number % 10}', 'marker': 'osD^vx+*'[number % 8], 'linestyle': '-' if number < 10 else '--'}


def map_figure(classifier, images, indices, settings):
    '''The maps of images by some settings (figure 4), as they are evaluated.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    images : :py:class:`~zennit_dc.evaluation.data.MaskedImages`
        The images.
    indices : sequence of int
        Those to be explained.
    settings : list[:py:class:`~zennit_dc.evaluation.settings.Setting`]
        The settings, one of each method.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure`
        The figure, with a row for each image.
    '''
    parameter, rows = next(classifier.model.parameters()), []
    for index in indices:
        sample = images.sample(index)
        input, maps = sample.input[None].to(parameter), {}
        for setting in settings:
            masks = {'masks': sample.mask[None]} if 'masks' in METHODS[setting.method].parameters else {}
            output, map = saliency_map(
                attributor(setting.method, classifier, **setting.arguments, **masks), input, sample.label
            )
            title = [setting.title, dict(setting.parameters).get('layer'), 'abs' if setting.absolute else None]
            maps[' '.join(filter(None, title))] = color(map[0].abs() if setting.absolute else map[0])
        rows.append((caption(classifier, output[0], sample.label), classifier.pixels(input[0]).numpy(), maps))
    return side_by_side(rows)
