'''Tables of an evaluation.'''
import pandas as pd

from ..methods import CONTROLS, METHODS
from .metrics import METRICS
from .selection import means


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
        The rows, the first of which is the header. An arrow shows where better is; the best mean of each metric is
        followed by a star, except for controls; a dash is where a setting has no score. Where metrics were computed
        on different numbers of images, the header says so.
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
    best = {
        metric: ranked[metric].max() if METRICS[metric].larger_is_better else ranked[metric].min() for metric in metrics
    }
    header = ['method', 'setting', *(['chosen by'] if chosen else []), *(
        f'{METRICS[metric].title} {"↑" if METRICS[metric].larger_is_better else "↓"}'
        f'{f" ({counts[metric]} images)" if counts[metrics].nunique() > 1 else ""}' for metric in metrics
    )]
    rows = [header]
    for (method, setting), values in zip(order, shown.values):
        numbers = [
            '–' if value != value else f'{value:.3f}{"*" if value == best[metric] and method not in controls else ""}'
            for metric, value in zip(metrics, values)
        ]
        rows.append([method, setting, *([', '.join(chosen[method, setting])] if chosen else []), *numbers])
    return rows


def markdown(rows):
    '''Rows, the first of which is the header, as a table in Markdown.'''
    table = pd.DataFrame(rows).map(lambda cell: cell.replace('|', '\\|'))
    return table[1:].to_markdown(headers=list(table.loc[0]), index=False, disable_numparse=True) + '\n'


def latex(rows):
    '''Rows, the first of which is the header, as a table in LaTeX, which needs the package booktabs.'''
    symbols = {'↑': r'$\uparrow$', '↓': r'$\downarrow$', 'α': r'$\alpha$', 'γ': r'$\gamma$', '×': r'$\times$'}
    return pd.DataFrame(rows[1:], columns=rows[0]).to_latex(index=False, escape=True).translate(str.maketrans(symbols))
