'''Tables of an evaluation.'''
import numpy as np
import pandas as pd

from ..methods import CONTROLS, METHODS
from .metrics import METRICS
from .selection import means


NOTE = 'n: the number of images; ±: the standard error, by bootstrap over images; bold: the best of its column.\n'


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
    controls = [METHODS[name].title for name in CONTROLS]
    ranked = shown.drop(index=controls, level='method', errors='ignore')
    counts = scores.groupby('metric')['image'].nunique()
    ends = {True: ranked.max(), False: ranked.min(), None: {}}
    best = {metric: ends[METRICS[metric].larger_is_better].get(metric) for metric in metrics}
    header = ['method', 'setting', *(['chosen by'] if chosen else []), *(
        f'{METRICS[metric].heading} (n = {counts[metric]})' for metric in metrics
    )]
    rows, errors = [header], standard_errors(scores).loc[order, metrics]
    for (method, setting), values, own_errors in zip(order, shown.values, errors.values):
        numbers = [
            cell(value, error, method not in controls and shown_as(value) == shown_as(best[metric]))
            for metric, value, error in zip(metrics, values, own_errors)
        ]
        rows.append([method, setting, *([', '.join(chosen[method, setting])] if chosen else []), *numbers])
    return rows


def standard_errors(scores, samples=1000):
    '''The standard error of each setting's mean score, by bootstrap over images, as :py:func:`means` has the means; not
    a number where there is one image alone.'''
    def error(values):
        drawn = np.random.default_rng(0).integers(len(values), size=(samples, len(values)))
        return values.to_numpy(float)[drawn].mean(1).std(ddof=1) if len(values) > 1 else np.nan

    return scores.groupby(['method', 'setting', 'metric'])['score'].agg(error).unstack('metric')


def shown_as(value):
    '''A score as it is shown, or None if there is none.'''
    return None if value is None else f'{value:.2f}'


def cell(value, error, is_best):
    '''A mean with its standard error, and a star if it is the best.'''
    if value != value:
        return '–'
    return f'{shown_as(value)}{"" if error != error else f" ± {error:.2f}"}{"*" if is_best else ""}'


def markdown(rows):
    '''Rows, the first of which is the header, as a table in Markdown, in which cells with a star are bold.'''
    table = pd.DataFrame(rows).map(lambda cell: cell.replace('|', '\\|'))
    table = table.map(lambda cell: f'**{cell[:-1]}**' if cell.endswith('*') else cell)
    return table[1:].to_markdown(headers=list(table.loc[0]), index=False, disable_numparse=True) + '\n'


def latex(rows):
    '''Rows, the first of which is the header, as a table in LaTeX, which needs the package booktabs.'''
    symbols = {'↑': 'uparrow', '↓': 'downarrow', 'α': 'alpha', '±': 'pm', 'γ': 'gamma', '×': 'times'}
    symbols = {each: rf'$\{name}$' for each, name in symbols.items()}
    return pd.DataFrame(rows[1:], columns=rows[0]).to_latex(index=False, escape=True).translate(str.maketrans(symbols))
