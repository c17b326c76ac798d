'''The command that compares methods by the paper's metrics.'''
import shlex
import sys
from pathlib import Path

import click

from ..data.files import require_local
from ..methods import METHODS
from .arguments import classifier_of, hold, require_compute, require_weights, tell_weights
from .options import (
    Alpha,
    Name,
    Penalty,
    Recentering,
    compute_options,
    model_option,
    model_options,
    option,
    record_option,
    together,
)


path = click.Path(path_type=Path)
# zennit_dc.evaluation.settings.SELECTION, which takes seconds to import
SELECTION = ('attribution_localisation', 'pointing_game', 'pixel_flipping_5', 'pixel_flipping_20')
OTHERS = (
    'support', 'negative_localisation', 'object_auc', 'selectivity', 'max_sensitivity', 'class_agreement', 'hog',
    'spearman', 'ssim', 'expected_frequency', 'frequency_gap', 'gradient_gap', 'time',
)
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
    several(
        'recentering', Recentering(), 'The forward stabilisation of a split method.',
        metavar='relative[:RHO]|scaling|shifting|none'
    ),
    several(
        'against', click.Choice(['none', 'others', 'likely']),
        'Explain why the class rather than others: all others alike, or by their probabilities.'
    ),
    several('epsilon', float, 'The stabilizer of SplitLRP.'),
    several('steps', click.IntRange(1), 'The number of steps of Integrated Gradients.'),
    several('samples', click.IntRange(1), 'The number of samples of Gradient SHAP, or of noisy copies.'),
    several('window', click.IntRange(1), 'The side of Occlusion\'s square in pixels.'),
    several('stride', click.IntRange(1), 'The distance of Occlusion\'s squares in pixels.'),
    several('penalty', Penalty(), 'The penalty of CAFO and CASO.', metavar='SHARE|l1:NUMBER'),
    several('margin', click.FloatRange(0., min_open=True), 'The margin of CASO.'),
    several('classes', click.IntRange(2), 'The number of likeliest classes in the loss of CAFO and CASO.'),
    several('patch', click.IntRange(1), 'The side of Feature Ablation\'s patches in pixels.'),
)


PARAMETERS = (
    'layer', 'alpha', 'stream', 'pooling', 'recentering', 'against', 'epsilon', 'steps', 'samples', 'window', 'stride',
    'penalty', 'margin', 'classes', 'patch',
)


class Typed(click.Command):
    '''A command that keeps what was typed.'''
    def parse_args(self, ctx, args):
        ctx.meta['zennit_dc.typed'] = shlex.join(['zennit-dc', ctx.info_name, *args])
        return super().parse_args(ctx, args)


@click.command(cls=Typed)
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
    '--method', 'methods', multiple=True, type=Name(METHODS), default=('splitcam', 'layercam', 'lrp-gamma'),
    help='A method. Can be given several times, as can the parameters from --layer to --patch.'
)
@parameter_options
@option(
    '--setting', 'given', multiple=True, metavar='"METHOD [NAME=VALUE,VALUE...] [absolute]"',
    help='A method with its own parameters, all of which are reported without a choice, in place of --method and'
    ' parameters; absolute is for its absolute value. Can be given several times.'
)
@option(
    '--metric', 'metrics', multiple=True, default=SELECTION, type=click.Choice([*SELECTION, *OTHERS]),
    help='What to report on the test split; settings are always chosen by the default ones.'
)
@option(
    '--subset', type=click.IntRange(1),
    help='The number of images of the test split for all other metrics, and for all but localisation in ablations.'
)
@option(
    '--costly', multiple=True, type=Name(METHODS),
    help='A method of many forward passes to leave out of Max Sensitivity and mosaics. Can be given several times.'
)
@option('--selectivity-patch', default=8, type=click.IntRange(1), help='The side of Selectivity\'s patches in pixels.')
@option('--flipping-step', default=112, type=click.IntRange(1), help='The pixels in a step of Pixel Flipping.')
@option(
    '--sensitivity-samples', default=25, type=click.IntRange(1), help='The number of noisy images of Max Sensitivity.'
)
@option('--randomised-layers', default=3, type=click.IntRange(1), help='The number of layers for hog, spearman, ssim.')
@option('--mosaics', default=0, type=click.IntRange(0), help='The number of mosaics for the Grid Pointing Game.')
@option(
    '--ablation', 'ablations', multiple=True, type=click.Choice(['alpha', 'pooling', 'recentering', 'against']),
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
@record_option
@compute_options
def evaluate(source, outlines, labels, count, methods, given, metrics, subset, costly, selectivity_patch, flipping_step,
             sensitivity_samples, randomised_layers, mosaics, ablations, ablation_metrics, share, out, model, weights,
             size, mean, std, output, input, record, device, dtype, seed, **choices):
    '''Compare methods by the paper's metrics on images with masks.

    The images are the demo's drawings, a folder in the layout of ImageNet-S, or any folder with --outlines. On the
    validation split, all combinations of the parameters are scored, with and without the absolute value of the maps; on
    the test split, of each method the best by localisation and the best by Pixel Flipping. With --setting, nothing is
    chosen: all of these are reported on the test split. Writes report.md, a page with what the scores say, all scores
    and their means as CSV, tables as LaTeX, and figures into the folder. What you write into report.md around the
    marked parts is kept. Interrupted at any moment, the same command goes on where it was; started by torchrun, the
    processes share the work.

    \b
    zennit-dc evaluate drawings --model demo --layer features --layer residual --alpha 0.4 --alpha balanced
    zennit-dc evaluate photos --outlines masks.json --layer features.9 --layer features.4 --metric pointing_game
    zennit-dc evaluate photos --outlines masks.json --setting "splitlrp layer=input,features.9 stream=positive"
    zennit-dc evaluate --config evaluation.toml --device cuda
    '''
    require_source(source, outlines, labels)
    require_weights(weights)

    from ..evaluation.comparison import SENSITIVITY, MethodComparison
    from ..evaluation.figures import map_figure
    from ..evaluation.settings import grid

    asked = list(dict.fromkeys(metrics))
    ablated = [each for each in dict.fromkeys(ablation_metrics or asked) if each in (*SELECTION, SENSITIVITY)]
    if ablations and not (mosaics or ablated):
        raise click.UsageError('ablations are of localisation, Pixel Flipping, Max Sensitivity and mosaics alone')
    if given and (ablations or any(choices.values())):
        raise click.UsageError('a --setting has its own parameters, and there are no ablations of it')
    own = [setting for text in given for setting in settings_of(text)]
    hold(out)
    device, dtype = require_compute(device, dtype, seed)
    classifier = classifier_of(model, weights, size, mean, std, output, input)
    tell_weights(classifier, weights)
    images = masked_images(classifier, source, outlines, labels, count, seed)
    settings = list(dict.fromkeys(own)) or grid(list(dict.fromkeys(methods)), **with_input(choices))
    require_layers(classifier, settings, device, dtype)
    options = {
        'device': device, 'dtype': dtype, 'seed': seed, 'progress': True,
        'randomised_layers': randomised_layers, 'selectivity_patch': selectivity_patch, 'flipping_step': flipping_step,
        'sensitivity_samples': sensitivity_samples, 'record': record
    }
    typed = click.get_current_context().meta['zennit_dc.typed']
    comparison = MethodComparison(
        classifier, images, out, asked, costly, subset, mosaics, share, options, click.echo, typed
    )
    comparison.require_all()
    shown = comparison.report_settings(settings) if own else report_best(comparison, settings, ablations, ablated)
    comparison.save(lambda: map_figure(classifier, images, comparison.sample(4), shown), 'maps.png')


def require_source(source, outlines, labels):
    '''Raise if images, outlines or labels were named that are not there.'''
    if outlines is not None and not outlines.is_file():
        raise click.UsageError(f'there is no file of outlines {outlines}')
    if str(source) != 'drawings' and not source.is_dir():
        require_local(source)
        raise click.UsageError(f'there is no folder {source}, and drawings is the only other source')
    if labels is not None and not labels.is_file():
        raise click.UsageError(f'there is no label map {labels}')


def report_best(comparison, settings, ablations, metrics):
    '''Choose the best settings on the validation split, and report them on the test split; those that are the best by
    localisation are returned.

    Parameters
    ----------
    comparison : :py:class:`~zennit_dc.evaluation.comparison.MethodComparison`
        The comparison.
    settings : list[:py:class:`~zennit_dc.evaluation.settings.Setting`]
        What is chosen from.
    ablations : sequence of str
        The parameters of which all values are reported.
    metrics : list[str]
        What is reported of these.
    '''
    scores = comparison.scores(settings, (comparison.validation, list(SELECTION)))
    chosen, best, localising = comparison.choose(settings, scores, ablations)
    comparison.report('validation', scores)
    comparison.report_spectra(settings, scores)
    comparison.report_test(best, chosen, localising)
    if ablations:
        comparison.report_ablations(best, ablations, metrics)
    return localising


def require_layers(classifier, settings, device, dtype):
    '''Raise at once if maps cannot be read at a layer of a setting, rather than after those of others.'''
    from ..data.classifiers import reading_places
    from ..methods.table import require_layer

    layers = list(dict.fromkeys(filter(None, (dict(setting.parameters).get('layer') for setting in settings))))
    for layer in layers:
        require_layer(classifier, layer)
    reading_places(classifier.to(device, dtype), layers, device, dtype)


def with_input(choices):
    '''The values of parameters, with None for the layer of the input's name.'''
    return {**choices, 'layer': [None if layer == 'input' else layer for layer in choices.get('layer', ())]}


def settings_of(text):
    '''The settings that a text such as ``splitlrp layer=input,features.9 against=none`` stands for.'''
    from ..evaluation.settings import grid

    options = {each.name: each for each in evaluate.params if isinstance(each, click.Option)}
    context, (method, *words) = click.get_current_context(), text.split() or ['']
    method = Name(METHODS).convert(method, options['given'], context)
    choices = {}
    for word in words:
        name, equals, values = word.partition('=')
        name = name.replace('-', '_')
        if word != 'absolute' and not (equals and name in PARAMETERS):
            raise click.UsageError(
                f'--setting {text!r}: {word!r} is neither absolute nor NAME=VALUE of {", ".join(PARAMETERS)}'
            )
        if equals:
            choices[name] = [options[name].type.convert(value, options[name], context) for value in values.split(',')]
    try:
        return grid([method], ['absolute' in words], **with_input(choices))
    except ValueError as error:
        raise click.UsageError(f'--setting {text!r}: {error}') from error


def masked_images(classifier, source, outlines, labels, count, seed):
    '''The images with masks that the options name.'''
    from ..data.images import label_map, load_label_map
    from ..evaluation.data import Drawings, ImageNetS, Polygons

    if str(source) == 'drawings':
        return Drawings(classifier, count, seed)
    if outlines is not None:
        return Polygons(classifier, source, outlines)
    entries = label_map(classifier.categories or ()) if labels is None else load_label_map(labels)
    return ImageNetS(classifier, source, {entry['word_net_id']: entry['index'] for entry in entries})
