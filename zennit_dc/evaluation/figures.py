'''Figures of an evaluation.'''
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import ScalarFormatter

from ..figures import caption, color, side_by_side
from ..methods import CONTROLS, METHODS, attributor, saliency_map
from .metrics import METRICS
from .selection import means
from .tables import standard_errors


def layer_figure(scores, settings, chosen, order):
    '''The scores of methods at different layers (figure 7).

    Parameters
    ----------
    scores : :py:class:`pandas.DataFrame`
        The scores of all settings, see :py:func:`zennit_dc.evaluation.selection.means`.
    settings : list[:py:class:`~zennit_dc.evaluation.settings.Setting`]
        The settings.
    chosen : list[:py:class:`~zennit_dc.evaluation.settings.Setting`]
        Those whose layer is varied, while their other parameters stay as they are. Settings without a layer, and those
        that were scored at no other one, are left out.
    order : list[str]
        The names of the model's layers in the order in which they are computed.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure` or None
        The figure, with a panel for each metric, of which all methods share the axes: the layers in the model's order,
        the input first, and the mean score with its standard error; None if no setting is left.
    '''
    curves = layer_curves(settings, chosen)
    if not curves:
        return None
    table, errors = means(scores), standard_errors(scores)
    layers = {dict(setting.parameters)['layer'] for own in curves.values() for setting in own.values()}
    places = {None: -1, **{name: place for place, name in enumerate(order)}}
    layers = sorted(layers, key=lambda layer: places.get(layer, len(places)))
    metrics = [metric for metric in METRICS if metric in table]
    figure = Figure(figsize=(3.6 * len(metrics), 3.4 + .22 * len(curves)), layout='constrained')
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        for style, own in zip(styles(), curves.values()):
            rows = [(own[layer].title, own[layer].name) for layer in layers if layer in own]
            own_places = [place for place, layer in enumerate(layers) if layer in own]
            axis.errorbar(own_places, table.loc[rows, metric], errors.loc[rows, metric], elinewidth=.5, **style)
        axis.set_title(METRICS[metric].heading)
        axis.set_xticks(range(len(layers)), [layer or 'input' for layer in layers], rotation=45, ha='right')
    figure.legend(axis.containers, list(curves), loc='outside lower center', fontsize='small')
    return figure


def spectra_figure(scores, settings):
    '''Complexity against faithfulness: a line for each method, over the values of alpha or over layers.

    Parameters
    ----------
    scores : :py:class:`pandas.DataFrame`
        The scores of all settings, see :py:func:`zennit_dc.evaluation.selection.means`.
    settings : list[:py:class:`~zennit_dc.evaluation.settings.Setting`]
        The settings.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure` or None
        The figure: the gap to the gradient and Pixel Flipping over the expected frequency, and Pixel Flipping over the
        gap, as far as they were asked for; None if there are no two of them.
    '''
    table = means(scores)
    frequency, gap, flipping = 'expected_frequency', 'gradient_gap', 'pixel_flipping_5'
    pairs = [pair for pair in ((frequency, gap), (frequency, flipping), (gap, flipping)) if {*pair} <= {*table.columns}]
    if not pairs:
        return None
    curves = {}
    for setting in settings:
        if not setting.absolute:
            varied = 'alpha' if 'alpha' in dict(setting.parameters) else 'layer'
            others = setting._replace(parameters=tuple(each for each in setting.parameters if each[0] != varied))
            curves.setdefault(f'{setting.title} {others.name}'.strip(), []).append((setting.title, setting.name))
    figure = Figure(figsize=(4.8 * len(pairs), 4. + .11 * len(curves)), layout='constrained')
    for axis, pair in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs):
        for style, rows in zip(styles(), curves.values()):
            axis.plot(*(table.loc[rows, metric] for metric in pair), linewidth=.8, markersize=4, **style)
        axis.set_xlabel(METRICS[pair[0]].heading)
        axis.set_ylabel(METRICS[pair[1]].heading)
    figure.legend(axis.lines, list(curves), loc='outside lower center', ncols=2, fontsize='x-small')
    return figure


def pareto_figure(scores):
    '''What is gained in the Grid Pointing Game, or else in the AUC on the object, at what price: a point a setting.

    Parameters
    ----------
    scores : :py:class:`pandas.DataFrame`
        The scores of all settings, see :py:func:`zennit_dc.evaluation.selection.means`.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure` or None
        The figure: Max Sensitivity and Pixel Flipping over the localisation, as far as they were asked for; better is
        upwards and to the right. Settings that no other one beats in both are joined by a line and numbered; the
        controls are hollow and not among them. None if there are no two such metrics.
    '''
    table = means(scores).replace(np.inf, np.nan)  # the sensitivity of a map of zeros
    across = next((name for name in ('grid_pointing_game', 'object_auc') if name in table), None)
    prices = [
        name for name in ('max_sensitivity', 'pixel_flipping_20')
        if across in table and name in table and table[[across, name]].notna().all(axis=1).any()
    ]
    if across is None or not prices:
        return None
    controls = [METHODS[name].title for name in CONTROLS]
    methods = list(dict.fromkeys(scores['method']))
    figure, numbers = Figure(figsize=(5.6 * len(prices), 7.), layout='constrained'), {}
    for axis, price in zip(figure.subplots(1, len(prices), squeeze=False)[0], prices):
        points = table[[across, price]].dropna()
        for method, style in zip(methods, styles()):
            if method in points.index.get_level_values('method'):
                own = points.loc[method]
                hollow = {'markerfacecolor': 'none'} if method in controls else {}
                axis.plot(own[across], own[price], **{**style, 'linestyle': 'none'}, **hollow, label=method)
        explaining = points.drop(index=controls, level='method', errors='ignore')
        front = pareto_front(explaining, METRICS[price].larger_is_better)
        draw_front(axis, front, numbers)
        axis.set_xlabel(METRICS[across].heading)
        axis.set_ylabel(METRICS[price].heading)
        if not METRICS[price].larger_is_better:
            axis.set_yscale('symlog', linthresh=1.)  # a map of a small norm may change by many times it
            axis.set_yticks([0., .2, .4, .6, .8, 1., 2., 5., 10., 20., 50., 100.])
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.set_ylim(1.1 * points[price].max(), -.05)
    handles = {label: line for each in figure.axes for line, label in zip(*each.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc='outside upper center', ncols=5, fontsize='small')
    names = [f'{number}  {" ".join(setting).strip()}' for setting, number in numbers.items()]
    figure.supxlabel('\n'.join(names), x=.02, ha='left', fontsize='small')
    return figure


def draw_front(axis, front, numbers):
    '''Join points by a line, and write the number of each beside it; a setting without one gets the next.'''
    axis.plot(*front.to_numpy().T, color='gray', linewidth=.8, zorder=0)
    for place, (setting, values) in enumerate(front.iterrows()):
        number = numbers.setdefault(setting, len(numbers) + 1)
        axis.annotate(
            str(number), values, xytext=(4 if place % 2 else -4, 6), textcoords='offset points', weight='bold',
            ha='left' if place % 2 else 'right', path_effects=[withStroke(linewidth=2., foreground='white')]
        )


def pareto_front(points, larger_is_better):
    '''The points that no other point beats in both columns, in the order of the first. Of the first column more is
    better, and of the second more or less.'''
    signed = points.assign(**{points.columns[1]: points.iloc[:, 1] * (1. if larger_is_better else -1.)})
    order = signed.sort_values([*signed.columns], ascending=False, kind='stable')
    best = order.iloc[:, 1].cummax()
    chosen = order.index[~(best.shift(1) >= order.iloc[:, 1])]
    return points.loc[chosen[::-1]]


def layer_curves(settings, chosen):
    '''The settings of each curve by their layers, by the curve's name. A chosen setting has a curve if it was scored at
    several layers.'''
    curves = {}
    for setting in chosen:
        if 'layer' in dict(setting.parameters):
            own = {dict(each.parameters)['layer']: each for each in settings
                   if each.method == setting.method and each.replaced(layer='') == setting.replaced(layer='')}
            if len(own) > 1:
                others = setting._replace(
                    parameters=tuple(each for each in setting.parameters if each[0] != 'layer')
                )
                curves[f'{setting.title} {others.name}'.strip()] = own
    return curves


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
                attributor(setting.method, classifier, **setting.arguments, **masks), input, sample.label,
                setting.against
            )
            title = [setting.title, dict(setting.parameters).get('layer'), 'abs' if setting.absolute else None]
            maps[' '.join(filter(None, title))] = color(map[0].abs() if setting.absolute else map[0])
        rows.append((caption(classifier, output[0], sample.label), classifier.pixels(input[0]).numpy(), maps))
    return side_by_side(rows)
