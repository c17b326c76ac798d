'''The choice of layers and parameters on a validation split (section 5.2).'''
import pandas as pd

from .settings import CRITERIA


def means(scores):
    '''The mean score of each setting over images.

    Parameters
    ----------
    scores : :py:class:`pandas.DataFrame`
        The columns ``image``, ``method``, ``setting``, ``metric`` and ``score``, with a row for each result.

    Returns
    -------
    :py:class:`pandas.DataFrame`
        A row for each method and setting, and a column for each metric. A mean is NaN if one of the scores is.

    Raises
    ------
    ValueError
        If a result is there twice, or if some setting lacks a score for an image, so that means would be over different
        images.
    '''
    keys = ['method', 'setting', 'metric']
    if scores.duplicated([*keys, 'image']).any():
        raise ValueError('there are several scores for the same image, method, setting and metric')
    counts = scores.groupby(keys)['image'].nunique().unstack('metric')
    images = scores.groupby('metric')['image'].nunique()
    incomplete = counts.lt(images, axis=1) & counts.notna()
    if incomplete.any(axis=None):
        method, setting = incomplete.index[incomplete.any(axis=1)][0]
        raise ValueError(f'{method} {setting} has no score for some of the images')
    return scores.groupby(keys)['score'].agg(lambda values: values.mean(skipna=False)).unstack('metric')


def winners(scores, criteria=CRITERIA):
    '''The best setting of each method by each criterion: that with the best mean rank in the criterion's metrics among
    the method's settings.

    Parameters
    ----------
    scores : :py:class:`pandas.DataFrame`
        The scores on the validation split, see :py:func:`means`.
    criteria : dict[str, dict[str, bool]], optional
        The metrics of each criterion, and whether larger is better.

    Returns
    -------
    :py:class:`pandas.DataFrame`
        The columns ``method``, ``criterion``, ``setting`` and ``rank``. Of settings with the same mean rank the first
        in the order of ``scores`` wins, so that the choice does not depend on chance.

    Raises
    ------
    ValueError
        If there is no score for a metric, or a score is not a number.
    '''
    table = means(scores)
    order = {setting: place for place, setting in enumerate(dict.fromkeys(scores['setting']))}
    rows = []
    for criterion, metrics in criteria.items():
        missing = [metric for metric in metrics if metric not in table]
        if missing:
            raise ValueError(f'there are no scores for {missing[0]!r}, which is part of {criterion}')
        for method in dict.fromkeys(scores['method']):
            own = table.loc[method]
            if own[list(metrics)].isna().any(axis=None):
                empty = own.index[own[list(metrics)].isna().any(axis=1)][0]
                raise ValueError(f'{method} {empty} has no score in {criterion}: leave this setting out')
            ranks = pd.concat([own[metric].rank(ascending=not larger) for metric, larger in metrics.items()], axis=1)
            mean_ranks = ranks.mean(axis=1)
            best = min(mean_ranks.index, key=lambda setting: (mean_ranks[setting], order[setting]))
            rows.append((method, criterion, best, mean_ranks[best]))
    return pd.DataFrame(rows, columns=['method', 'criterion', 'setting', 'rank'])
