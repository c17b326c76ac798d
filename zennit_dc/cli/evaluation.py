'''The command that compares methods by the paper's metrics.'''
import os
import sys
from pathlib import Path

import click

from ..data.classifiers import load_classifier
from ..data.images import label_map, load_label_map
from ..data.parts import written
from ..data.processes import local_device
from ..methods import METHODS, RECENTERINGS
from .options import DTYPES, Alpha, compute_options, model_option, model_options, option, save, together


path = click.Path(path_type=Path)
SELECTION = ('attribution_localisation', 'pointing_game', 'pixel_flipping_5', 'pixel_flipping_20')
OTHERS = ('selectivity', 'max_sensitivity', 'hog', 'spearman', 'ssim', 'time')
ALL_STREAMS = list(dict.fromkeys(stream for method in METHODS.values() for stream in method.streams))


def configured(context, parameter, value):
    '''Take the options of a file as defaults.'''
    if value is not None:
        context.default_map = {**(context.default_map or {}), **read_options(context.command, value)}


def read_options(command, file):
    '''The options in a TOML file, by the names that the command's function has for them.'''
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        given = tomllib.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise click.UsageError(f'{file} cannot be read as TOML: {error}') from error
    names = {each.name: each.name for each in command.params}
    names.update({
        name.lstrip('-'): each.name for each in command.params if isinstance(each, click.Option) for name in each.opts
    })
    several = [each.name for each in command.params if isinstance(each, click.Option) and each.multiple]
    for name, value in given.items():
        if name not in names:
            raise click.UsageError(f'{file} has {name!r}, which is no option: {", ".join(names)}')
        if names[name] in several and not isinstance(value, list):
            raise click.UsageError(f'{file}: {name} can have several values, and so must be a list, as in [{value!r}]')
    return {names[name]: value for name, value in given.items()}


def several(name, type, help, **more):
    '''An option for a parameter of methods, of which several values can be compared.'''
    return option(f'--{name.replace("_", "-")}', name, multiple=True, type=type, help=help, **more)


parameter_options = together(
    several('layer', str, 'A layer to choose from; input is the input.', metavar='NAME'),
    several('alpha', Alpha(), 'The shift of SplitGrad and SplitCAM.', metavar='ALPHA|balanced[:KAPPA]'),
    several('stream', click.Choice(ALL_STREAMS), 'The stream of a split method.'),
    several('pooling', click.Choice(['wta', 'convex']), 'The form of max-pooling of a split method.'),
    several('recentering', click.Choice(RECENTERINGS), 'The forward stabilisation of a split method.'),
    several('epsilon', float, 'The stabilizer of SplitLRP.'),
    several('steps', click.IntRange(1), 'The number of steps of Integrated Gradients.'),
    several('samples', click.IntRange(1), 'The number of samples of Gradient SHAP.'),
    several('window', click.IntRange(1), 'The side of Occlusion\'s square in pixels.'),
    several('stride', click.IntRange(1), 'The distance of Occlusion\'s squares in pixels.'),
    several('patch', click.IntRange(1), 'The side of Feature Ablation\'s patches in pixels.'),
)


@click.command()
@click.argument('source', type=path, metavar='drawings|FOLDER')
@option(
    '--config', type=path, is_eager=True, expose_value=False, callback=configured,
    help='A TOML file with options by their names, lists for those that can be given several times, and source.'
    ' What is given on the command line takes precedence.'
)
@option('--outlines', type=path, help='A JSON file with polygons around the objects of the images in FOLDER.')
@option('--label-map', 'labels', type=path, help='The label map by whose WordNet IDs folders of classes are found.')
@option('--images', 'count', default=100, type=click.IntRange(2), help='The number of drawings.')
@option(
    '--method', 'methods', multiple=True, type=click.Choice(METHODS), default=('splitcam', 'layercam', 'lrp-gamma'),
    help='A method. Can be given several times, as can the parameters from --layer to --patch.'
)
@parameter_options
@option(
    '--metric', 'metrics', multiple=True, default=SELECTION, type=click.Choice([*SELECTION, *OTHERS]),
    help='What to report on the test split; settings are always chosen by the default ones.'
)
@option(
    '--subset', type=click.IntRange(1),
    help='The number of images of the test split for all other metrics, and for all but localisation in ablations.'
)
@option(
    '--costly', multiple=True, type=click.Choice(METHODS),
    help='A method of many forward passes to leave out of Max Sensitivity and mosaics. Can be given several times.'
)
@option('--selectivity-patch', default=8, type=click.IntRange(1), help='The side of Selectivity\'s patches in pixels.')
@option('--randomised-layers', default=3, type=click.IntRange(1), help='The number of layers for hog, spearman, ssim.')
@option('--mosaics', default=0, type=click.IntRange(0), help='The number of mosaics for the Grid Pointing Game.')
@option(
    '--ablation', 'ablations', multiple=True, type=click.Choice(['alpha', 'pooling', 'recentering']),
    help='Report the best settings of split methods with all values of this parameter, too. Can be given several times.'
)
@option(
    '--ablation-metric', 'ablation_metrics', multiple=True, type=click.Choice([*SELECTION, 'max_sensitivity']),
    help='What to report of ablations.  [default: what is reported of the best settings]'
)
@option(
    '--share', default=.25, type=click.FloatRange(0., 1., min_open=True, max_open=True),
    help='The share of the images on which settings are chosen.'
)
@option('--out', default='evaluation', type=click.Path(path_type=Path, file_okay=False), help='The folder of results.')
@model_option
@model_options
@compute_options
def evaluate(source, outlines, labels, count, methods, metrics, subset, costly, selectivity_patch, randomised_layers,
             mosaics, ablations, ablation_metrics, share, out, model, weights, size, mean, std, device, dtype, seed,
             **choices):
    '''Compare methods by the paper's metrics on images with masks.

    The images are the demo's drawings, a folder in the layout of ImageNet-S, or any folder with --outlines. On the
    validation split, all combinations of the parameters are scored, with and without the absolute value of the maps; on
    the test split, of each method the best by localisation and the best by Pixel Flipping. Writes all scores as CSV,
    tables as Markdown and LaTeX, and figures into the folder. Interrupted at any moment, the same command goes on where
    it was; started by torchrun, the processes share the work.

    \b
    zennit-dc evaluate drawings --model demo --layer features --layer residual --alpha 0.4 --alpha balanced
    zennit-dc evaluate photos --outlines masks.json --layer features.9 --layer features.4 --metric pointing_game
    zennit-dc evaluate --config evaluation.toml --device cuda
    '''
    import pandas as pd

    from ..evaluation.data import split
    from ..evaluation.figures import layer_figure, map_figure
    from ..evaluation.metrics import METRICS
    from ..evaluation.mosaics import Mosaics
    from ..evaluation.randomisation import randomised
    from ..evaluation.runs import evaluate as evaluate_all
    from ..evaluation.selection import CRITERIA, winners
    from ..evaluation.settings import ablation, grid

    classifier = load_classifier(model, weights, size, mean, std)
    images = load_images(classifier, source, outlines, labels, count, seed)
    validation, test = split(images, share, seed)
    choices['layer'] = [None if layer == 'input' else layer for layer in choices['layer']]
    settings = grid(list(dict.fromkeys(methods)), **choices)
    options = {
        'device': device, 'dtype': DTYPES[dtype], 'seed': seed, 'progress': sys.stderr.isatty(),
        'randomised_layers': randomised_layers, 'selectivity_patch': selectivity_patch
    }
    few = sample_of(test, subset, seed)
    asked = list(dict.fromkeys(metrics))
    others = [each for each in asked if each not in SELECTION and each != 'max_sensitivity']
    ablated = [each for each in dict.fromkeys(ablation_metrics or asked) if each in (*SELECTION, 'max_sensitivity')]
    if ablations and not (mosaics or ablated):
        raise click.UsageError('ablations are of localisation, Pixel Flipping, Max Sensitivity and mosaics alone')

    # what can fail early should
    for index in range(len(images)):
        images.sample(index)
    classifier.to(local_device(device), DTYPES[dtype])
    if any(METRICS[each].needs_random for each in asked):
        randomised(classifier, randomised_layers, seed)
    drawn = Mosaics(images, test, mosaics, seed) if mosaics else None

    def scores_of(settings, *groups):
        # all processes make the same calls
        return pd.concat([evaluate_all(classifier, images, indices, [
            each for each in settings if names != ['max_sensitivity'] or each.method not in costly
        ], names, out, **options) for indices, names in groups])

    def game(settings):
        return evaluate_all(
            classifier, drawn, range(len(drawn)), [each for each in settings if each.method not in costly],
            ['grid_pointing_game'], out / f'mosaics-{drawn.fingerprint()[:8]}', **options
        )

    chosen_on = scores_of(settings, (validation, list(SELECTION)))
    chosen = winners(chosen_on)
    by_name = {(setting.title, setting.name): setting for setting in settings}
    winning = [by_name[each] for each in zip(chosen['method'], chosen['setting'])]
    localising = winning[:len(winning) // 2]  # by the first of two criteria
    best = [setting for setting in settings if setting in winning]
    for name in ablations:
        if not ablation(best, name):
            raise click.UsageError(f'none of the best settings depends on {name}: leave out --ablation {name}')
    changed = ablation(best, *dict.fromkeys(ablations)) if ablations else []
    first = int(os.environ.get('RANK', 0)) == 0
    if first:
        remove_results(out)
        save_text(out / 'winners.csv', chosen.to_csv(index=False))
        click.echo(f'{len(settings)} settings on {len(validation)} images, the best ones on {len(test)} others:\n')
        by_layers = layer_figure(chosen_on, settings, localising)
        if by_layers is not None:
            save(by_layers, out / 'layers.png')
    report(first, out, 'validation', chosen_on, None, echo=False)
    sensitivity = [each for each in asked if each == 'max_sensitivity']
    on_test = scores_of(best, (test, [each for each in asked if each in SELECTION]), (few, others), (few, sensitivity))
    report(first, out, 'test', on_test, chosen)
    if mosaics:
        report(first, out, 'mosaics', game(best), chosen)
    if changed:
        groups = [[each for each in ablated if each in CRITERIA[name]] for name in ('localisation', 'faithfulness')]
        groups.append([each for each in ablated if each == 'max_sensitivity'])
        if ablated:
            report(first, out, 'ablation', scores_of(changed, *zip((test, few, few), groups)), None)
    if changed and mosaics:
        report(first, out, 'ablation-mosaics', game(changed), None)
    if first:
        save(map_figure(classifier, images, sample_of(test, 4, seed), localising), out / 'maps.png')


def sample_of(indices, count, seed):
    '''A number of indices in their order, drawn by a seed, or all of them.'''
    import numpy as np

    if count is None or count >= len(indices):
        return indices
    return sorted(np.random.default_rng(seed).choice(indices, count, replace=False).tolist())


def remove_results(out):
    '''Remove the tables and figures of an earlier run with other settings.'''
    for name in (
        'validation', 'winners', 'test', 'table', 'randomisation', 'time', 'mosaics', 'ablation', 'ablation-mosaics',
        'layers', 'maps'
    ):
        for end in ('csv', 'md', 'tex', 'png'):
            (out / f'{name}.{end}').unlink(missing_ok=True)


def report(first, out, name, scores, chosen, echo=True):
    '''Save scores and their tables, and print the tables, if this is the first process.'''
    from ..evaluation.metrics import METRICS
    from ..evaluation.tables import latex, markdown, results_table

    if not first:
        return
    save_text(out / f'{name}.csv', scores.to_csv(index=False))
    kinds = scores['metric'].map(lambda metric: METRICS[metric].table)
    for kind in dict.fromkeys(kinds):
        rows = results_table(scores[kinds == kind], chosen)
        title = kind if name == 'test' else name
        save_text(out / f'{title}.md', markdown(rows))
        save_text(out / f'{title}.tex', latex(rows))
        if echo:
            click.echo(f'{title}:\n\n{markdown(rows)}')


def save_text(file, content):
    '''Write a text as a whole or not at all.'''
    with written(file) as temporary:
        temporary.write_text(content, encoding='utf-8')


def load_images(classifier, source, outlines, labels, count, seed):
    '''The images with masks that the options name.'''
    from ..evaluation.data import Drawings, ImageNetS, Polygons

    if str(source) == 'drawings':
        return Drawings(classifier, count, seed)
    if outlines is not None:
        return Polygons(classifier, source, outlines)
    entries = label_map(classifier.categories or ()) if labels is None else load_label_map(labels)
    return ImageNetS(classifier, source, {entry['word_net_id']: entry['index'] for entry in entries})
