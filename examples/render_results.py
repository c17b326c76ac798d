'''Write the tables on the pages of results again, from the CSV files beside them. Nothing is measured.

    python render_results.py results

What a person has written around the tables is kept. The commands that measure are on the pages.
'''
from pathlib import Path

import benchmark
import click
import compare_activations
import compare_networks
import mnist_difference
import mnist_pictures
import second_order
import smooth_relu
import spectra
import support
import supported_models

from zennit_dc.evaluation.comparison import REPORT, page_parts, read_wide
from zennit_dc.evaluation.pages import page_beside, replaced, save_text


PAGES = {
    'activations': (compare_activations,), 'difference': (mnist_difference, mnist_pictures),
    'models': (supported_models,), 'second_order': (second_order,), 'spectra': (spectra, smooth_relu),
    'speed': (benchmark,), 'replays': (benchmark,), 'support': (support,),
}
'''The scripts that write a page's tables, where there is one.'''
NETWORKS = 'efficientnet_lite0', 'squeezenet', 'drawings'
'''The evaluations.'''


def pages(results):
    '''The pages of a folder of results, with the parts that are generated.'''
    for name, scripts in PAGES.items():
        if not (results / name).is_dir():
            continue
        found = {}
        for script in scripts:
            found.update(script.parts(results / name))
        yield page_beside(results / name), found
    for name in NETWORKS:
        yield results / name / REPORT, page_parts(read_wide(results / name / 'settings.csv'), 'settings')
    folders = [results / name for name in NETWORKS]
    yield results / 'README.md', {'methods': compare_networks.methods_table(folders, 'grid_pointing_game')}


@click.command(help=__doc__.split('\n\n')[0])
@click.argument('results', type=click.Path(path_type=Path, file_okay=False, exists=True))
def main(results):
    '''Write the tables again.'''
    for path, found in pages(results):
        save_text(path, replaced(path.read_text(encoding='utf-8'), found))
        click.echo(path)


if __name__ == '__main__':
    main()
