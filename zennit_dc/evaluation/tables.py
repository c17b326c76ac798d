'''Tables of an evaluation.'''
import numpy as np
import pandas as pd

from ..methods import CONTROLS, METHODS
from .metrics import METRICS
from .pages import ROWS, WIDTH, fits, table
from .selection import means


FIRST = 'grid_pointing_game', 'object_auc', 'attribution_localisation', 'pointing_game'
'''The metrics by which methods are ranked, the first that was asked for.'''


def results_table(scores, criteria=None):
    '''The mean scores as a table for people.

    Parameters
    ----------
    scores : :py:class:`pandas.DataFrame`
        The scores, see :py:func:`zennit_dc.evaluation.selection.means`.
    criteria : :py:class:`pandas.DataFrame`, optional
        The winners, see :py:func:`zennit_dc.evaluation.selection.winners`. The table then has their settings alone, and
        a column with what they were chosen by.

    Returns
    -------
    list[list[str]]
        The rows, the first of which is the header. An arrow shows where better is, and a number of how many images a
        metric has the mean. The mean comes with its standard error, by bootstrap over images; the best mean of each
        metric, and those that look the same, are followed by a star, except for controls; a dash is where a setting
        has no score.
    '''
    table = means(scores)
    metrics = [metric for metric in METRICS if metric in table]
    chosen = {}
    for method, criterion, setting in ([] if criteria is None else criteria[['method', 'criterion', 'setting']].values):
        chosen.setdefault((method, setting), []).append(criterion)
    order = list(dict.fromkeys(zip(scores['method'], scores['setting'])))
    order = [each for each in order if criteria is None or each in chosen]
    shown = table.loc[order, metrics]
    ranked = shown.drop(index=controls(), level='method', errors='ignore')
    counts = scores.groupby('metric')['image'].nunique()
    ends = {True: ranked.max(), False: ranked.min(), None: {}}
    best = {metric: ends[METRICS[metric].larger_is_better].get(metric) for metric in metrics}
    header = ['method', 'setting', *(['chosen by'] if chosen else []), *(
        f'{METRICS[metric].heading} (n = {counts[metric]})' for metric in metrics
    )]
    rows, errors = [header], standard_errors(scores).loc[order, metrics]
    for (method, setting), values, own_errors in zip(order, shown.values, errors.values):
        numbers = [
            cell(value, error, method not in controls() and shown_as(value) == shown_as(best[metric]))
            for metric, value, error in zip(metrics, values, own_errors)
        ]
        rows.append([method, setting, *([', '.join(chosen[method, setting])] if chosen else []), *numbers])
    return rows


def mean_scores(scores):
    '''The mean scores with their standard errors, as a row for each method, setting and metric.

    Parameters
    ----------
    scores : :py:class:`pandas.DataFrame`
        The scores, see :py:func:`zennit_dc.evaluation.selection.means`.

    Returns
    -------
    :py:class:`pandas.DataFrame`
        The columns ``method``, ``setting``, ``metric``, ``mean``, ``standard_error``, by bootstrap over images, and
        ``images``, the number of these.
    '''
    keys = ['method', 'setting', 'metric']
    columns = {'mean': means(scores), 'standard_error': standard_errors(scores)}
    found = pd.concat({name: each.stack() for name, each in columns.items()}, axis=1)
    found['images'] = scores.groupby(keys)['image'].nunique()
    order = list(dict.fromkeys(scores[keys].itertuples(index=False, name=None)))
    return found.reindex(pd.MultiIndex.from_tuples(order, names=keys)).reset_index()


def summary(scores, settings=None):
    '''The mean scores of one setting of each method, as a table that fits on a page.

    Parameters
    ----------
    scores : :py:class:`pandas.DataFrame`
        The scores, see :py:func:`zennit_dc.evaluation.selection.means`.
    settings : sequence of tuples, optional
        The methods and settings that are shown. Left out, these are the best of each method by the first metric of
        :py:data:`FIRST`.

    Returns
    -------
    str
        The table in Markdown, the best setting first and controls last. It has as many metrics as there is space for,
        those of :py:data:`FIRST` before others.
    '''
    order = ranking(scores, settings)
    explaining = [each for each in order if each[0] not in controls()]
    last = [each for each in order if each[0] in controls()][:ROWS - 1]
    shown = [*explaining[:ROWS - len(last)], *last]
    found, errors = means(scores), standard_errors(scores)
    header, rows = ['setting'], [[shortened(*each)] for each in shown]
    for metric in ranked_metrics(scores):
        column = [cell(found[metric][each], errors[metric][each], False) for each in shown]
        wider = [*header, METRICS[metric].heading], [[*row, each] for row, each in zip(rows, column)]
        if len(header) > 1 and not fits(*wider):
            break
        header, rows = wider
    room = WIDTH - 7 - max(map(len, (header[1], *(row[1] for row in rows)))) if len(header) == 2 else WIDTH
    return table(header, [[label if len(label) <= room else f'{label[:room - 1]}…', *row] for label, *row in rows])


def ranked_metrics(scores):
    '''The metrics of scores, those by which methods are ranked before others.'''
    there = {*scores['metric']}
    return [metric for metric in dict.fromkeys([*FIRST, *METRICS]) if metric in there]


def ranking(scores, settings=None):
    '''The settings, or the best one of each method, from the best one by the first metric to those without a score.'''
    metric = ranked_metrics(scores)[0]
    values = means(scores)[metric]
    better = METRICS[metric].larger_is_better is not False
    worst = -np.inf if better else np.inf

    def place(setting):
        value = values[setting]
        value = worst if np.isnan(value) else value
        return -value if better else value

    everything = list(dict.fromkeys(zip(scores['method'], scores['setting'])))
    order = sorted(everything if settings is None else dict.fromkeys(map(tuple, settings)), key=place)
    if settings is None:
        order = list({method: (method, setting) for method, setting in reversed(order)}.values())
        order.sort(key=place)
    return order


def message(scores, settings=None):
    '''What the scores say in three sentences: the best setting, the next method, and the controls.

    Parameters
    ----------
    scores, settings
        See :py:func:`summary`.

    Returns
    -------
    str
        The sentences. Two methods are told apart where the mean difference on the same images is more than two of its
        standard errors.
    '''
    order, metric = ranking(scores, settings), ranked_metrics(scores)[0]
    found, errors = means(scores)[metric], standard_errors(scores)[metric]
    title, count = METRICS[metric].title.rstrip('.'), scores[scores['metric'] == metric]['image'].nunique()
    explaining = [each for each in order if each[0] not in controls() and not np.isnan(found[each])]
    looking_at_nothing = [each for each in order if each[0] in controls() and not np.isnan(found[each])]
    sentences = []
    if explaining:
        best = explaining[0]
        sentences.append(
            f'By {title} ({count} images), {in_words(*best)} is the best setting, with'
            f' {cell(found[best], errors[best], False)}.'
        )
    rest = [each for each in explaining[1:] if each[0] != best[0]]
    if rest:
        difference, error = difference_of(scores, metric, best, rest[0])
        told = 'is more than' if abs(difference) > 2. * error else 'is not more than'
        sentences.append(
            f'The next method is {in_words(*rest[0])}, with {cell(found[rest[0]], errors[rest[0]], False)}: the'
            f' difference on the same images, {abs(difference):.3f}, {told} two standard errors.'
        )
    if looking_at_nothing:
        named = ', and '.join(f'{method} has {shown_as(found[method, name])}' for method, name in looking_at_nothing)
        sentences.append(f'Of the controls, which look at nothing, {named}.')
    else:
        sentences.append('No control is among the settings that would say what a map has that looks at nothing.')
    return ' '.join(sentences)


def difference_of(scores, metric, first, second):
    '''The mean difference of two settings' scores of the same images, and its standard error.'''
    own = scores[scores['metric'] == metric].set_index(['method', 'setting', 'image'])['score'].sort_index()
    differences = (own.loc[first] - own.loc[second]).to_numpy(float)
    return differences.mean(), bootstrap_error(differences)


def shortened(method, setting):
    '''A method and its setting for people, without the names of parameters whose values speak for themselves.'''
    words = [each.partition(' ') for each in setting.split(', ') if each]
    known = 'layer', 'stream', 'against'
    return ', '.join([method, *(value if name in known else f'{name}{space}{value}' for name, space, value in words)])


def in_words(method, setting):
    '''A method and its setting in a sentence.'''
    name, comma, values = shortened(method, setting).partition(', ')
    return f'{name} ({values})' if comma else name


def controls():
    '''The titles of the methods that look at nothing.'''
    return [METHODS[name].title for name in CONTROLS]


def notes(scores, is_chosen_here):
    '''What a summary has to say of its numbers, and whether the settings were chosen by the same images.'''
    counts = scores.groupby('metric')['image'].nunique()
    counts = {count: [METRICS[each].title.rstrip('.') for each in ranked_metrics(scores) if counts[each] == count]
              for count in dict.fromkeys(counts)}
    listed = '; '.join(f'{count} for {", ".join(titles)}' for count, titles in counts.items())
    chosen = ' It is its best one by these very images, which flatters methods with many settings.'
    return (
        f'One setting of each method.{chosen if is_chosen_here else ""}'
        f' ±: the standard error, by bootstrap over images. Images: {listed}.'
    )


def bootstrap_error(values, samples=1000):
    '''The standard error of a mean by bootstrap; not a number of one value alone.'''
    drawn = np.random.default_rng(0).integers(len(values), size=(samples, len(values)))
    return values[drawn].mean(1).std(ddof=1) if len(values) > 1 else np.nan


def standard_errors(scores, samples=1000):
    '''The standard error of each setting's mean score, by bootstrap over images, as :py:func:`means` has the means; not
    a number where there is one image alone.'''
    return scores.groupby(['method', 'setting', 'metric'])['score'].agg(
        lambda values: bootstrap_error(values.to_numpy(float), samples)
    ).unstack('metric')


def shown_as(value):
    '''A score as it is shown, or None if there is none.'''
    return None if value is None else f'{value:.2f}'


def cell(value, error, is_best):
    '''A mean with its standard error, and a star if it is the best.'''
    if value != value:
        return '–'
    return f'{shown_as(value)}{"" if error != error else f" ± {error:.2f}"}{"*" if is_best else ""}'


def latex(rows):
    '''Rows, the first of which is the header, as a table in LaTeX, which needs the package booktabs.'''
    symbols = {'↑': 'uparrow', '↓': 'downarrow', 'α': 'alpha', '±': 'pm', 'γ': 'gamma', '×': 'times'}
    symbols = {each: rf'$\{name}$' for each, name in symbols.items()}
    return pd.DataFrame(rows[1:], columns=rows[0]).to_latex(index=False, escape=True).translate(str.maketrans(symbols))
