'''The command that compares methods by the paper's metrics.'''
import os
import sys
from pathlib import Path

import click

from .cli_options import DTYPES, Alpha, compute_options, model_option, model_options, option
from .images import label_map, load_label_map
from .methods import METHODS
from .models import load_classifier


path = click.Path(path_type=Path)
SELECTION = ('attribution_localisation', 'pointing_game', 'pixel_flipping_5', 'pixel_flipping_20')
STREAMS = list(dict.fromkeys(stream for method in METHODS.values() for stream in method.streams))


@click.command()
@click.argument('source', type=path, metavar='drawings|FOLDER')
@option('--outlines', type=path, help='A JSON file with polygons around the objects of the images in FOLDER.')
@option('--label-map', 'labels', type=path, help='The label map by whose WordNet IDs folders of classes are found.')
@option('--images', 'count', default=100, type=click.IntRange(2), help='The number of drawings.')
@option(
    '--method', 'methods', multiple=True, type=click.Choice(METHODS), default=('splitcam', 'layercam', 'lrp-gamma'),
    help='A method. Can be given several times, as can those of the next four options.'
)
@option('--layer', 'layers', multiple=True, metavar='NAME', help='A layer to choose from. input is the input.')
@option('--alpha', 'alphas', multiple=True, type=Alpha(), metavar='ALPHA|balanced[:KAPPA]', help='A shift.')
@option('--stream', 'streams', multiple=True, type=click.Choice(STREAMS), help='A stream.')
@option('--pooling', 'poolings', multiple=True, type=click.Choice(['wta', 'convex']), help='A form of max-pooling.')
@option(
    '--metric', 'metrics', multiple=True, default=SELECTION,
    type=click.Choice([*SELECTION, 'selectivity', 'max_sensitivity']),
    help='What to report on the test split; settings are always chosen by the default ones.'
)
@option(
    '--share', default=.25, type=click.FloatRange(0., 1., min_open=True, max_open=True),
    help='The share of the images on which settings are chosen.'
)
@option('--out', default='evaluation', type=click.Path(path_type=Path, file_okay=False), help='The folder of results.')
@model_option
@model_options
@compute_options
def evaluate(source, outlines, labels, count, methods, layers, alphas, streams, poolings, metrics, share, out, model,
             weights, size, mean, std, device, dtype, seed):
    '''Compare methods by the paper's metrics on images with masks.

    The images are the demo's drawings, a folder in the layout of ImageNet-S, or any folder with --outlines. On the
    validation split, all combinations of layers, shifts, streams and poolings are scored, with and without the absolute
    value of the maps; on the test split, of each method the best by localisation and the best by Pixel Flipping. Writes
    validation.csv, winners.csv, test.csv, table.md and table.tex into the folder. Interrupted at any moment, the same
    command goes on where it was; started by torchrun, the processes share the work.

    \b
    zennit-dc evaluate drawings --model demo --layer features --layer residual --alpha 0.4 --alpha balanced
    zennit-dc evaluate photos --outlines masks.json --layer features.9 --layer features.4 --metric pointing_game
    '''
    from .evaluation.data import split
    from .evaluation.runs import evaluate as evaluate_all
    from .evaluation.runs import grid
    from .evaluation.selection import winners
    from .evaluation.tables import latex, markdown, results_table
    from .parts import written

    classifier = load_classifier(model, weights, size, mean, std)
    images = load_images(classifier, source, outlines, labels, count, seed)
    validation, test = split(images, share, seed)
    layers = [None if layer == 'input' else layer for layer in layers]
    settings = grid(methods, layer=layers, alpha=alphas, stream=streams, pooling=poolings)
    options = {'device': device, 'dtype': DTYPES[dtype], 'seed': seed, 'progress': sys.stderr.isatty()}
    chosen_on = evaluate_all(classifier, images, validation, settings, SELECTION, out, **options)
    chosen = winners(chosen_on)
    kept = set(zip(chosen['method'], chosen['setting']))
    best = [setting for setting in settings if (METHODS[setting.method].title, setting.name) in kept]
    reported = evaluate_all(classifier, images, test, best, list(dict.fromkeys(metrics)), out, **options)
    if int(os.environ.get('RANK', 0)) > 0:
        return
    rows = results_table(reported, chosen)
    contents = {
        'validation.csv': chosen_on.to_csv(index=False), 'winners.csv': chosen.to_csv(index=False),
        'test.csv': reported.to_csv(index=False), 'table.md': markdown(rows), 'table.tex': latex(rows)
    }
    for name, content in contents.items():
        with written(out / name) as temporary:
            temporary.write_text(content, encoding='utf-8')
    click.echo(f'{len(settings)} settings on {len(validation)} images, the best ones on {len(test)} others:\n')
    click.echo(markdown(rows))


def load_images(classifier, source, outlines, labels, count, seed):
    '''The images with masks that the options name.'''
    from .evaluation.data import Drawings, ImageNetS, Polygons

    if str(source) == 'drawings':
        return Drawings(classifier, count, seed)
    if outlines is not None:
        return Polygons(classifier, source, outlines)
    entries = label_map(classifier.categories or ()) if labels is None else load_label_map(labels)
    return ImageNetS(classifier, source, {entry['word_net_id']: entry['index'] for entry in entries})
