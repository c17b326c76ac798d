'''Compare methods over the networks of several evaluations: the best setting of each method on each network.

    python compare_networks.py squeezenet efficientnet_lite0 drawings --out README.md

Each folder is one that `zennit-dc evaluate` has written with --setting. The table has the mean of the Grid Pointing
Game, or of another --metric, for the best setting of each method, and is written into the part `methods` of the page;
what you write around it is kept.
'''
from pathlib import Path

import click
import pandas as pd

from zennit_dc.evaluation.comparison import read_wide
from zennit_dc.evaluation.metrics import METRICS
from zennit_dc.evaluation.pages import ROWS, command_line, number, table, update_page
from zennit_dc.evaluation.selection import means


def best(folder, metric):
    '''The best mean of each method in a metric, and the setting that has it.'''
    scores = means(read_wide(folder / 'settings.csv'))
    if metric not in scores:
        raise click.ClickException(f'{folder} has no scores in {metric}, but in {", ".join(scores)}')
    sign = 1. if METRICS[metric].larger_is_better is not False else -1.
    return (sign * scores[metric]).groupby('method').max() * sign


def methods_table(folders, metric):
    '''The best means of methods by folders: as many methods as a page has rows, by their mean over the folders.'''
    found = pd.DataFrame({folder.resolve().name: best(folder, metric) for folder in folders})
    better = METRICS[metric].larger_is_better is False
    found = found.dropna(how='all')
    found = found.loc[found.mean(axis=1).sort_values(ascending=better, kind='stable').index]
    header = [f'{METRICS[metric].heading}, best setting', *found]
    return table(header, [[method, *map(number, row)] for method, row in found.head(ROWS).iterrows()])


@click.command(help=__doc__.split('\n\n')[0])
@click.argument('folders', nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option('--metric', type=click.Choice(list(METRICS)), default='grid_pointing_game', show_default=True)
@click.option('--out', type=click.Path(path_type=Path, dir_okay=False), required=True, help='The page.')
def main(folders, metric, out):
    '''Write the table.'''
    text = methods_table(folders, metric)
    update_page(out, 'Methods over networks', command_line(), {'methods': text})
    click.echo(text)


if __name__ == '__main__':
    main()
