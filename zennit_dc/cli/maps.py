'''The commands explain, which makes pictures, and layers, which lists where maps can be read.'''
from pathlib import Path

import click

from ..core.wording import meant
from ..data.files import require_file
from ..methods import BASELINES, METHODS
from .arguments import (
    classifier_of,
    count_classes,
    hold,
    image_files,
    possible_against,
    require_compute,
    require_format,
    require_known_classes,
    require_once,
    require_output,
    require_used,
    require_weights,
    tell_classes,
    tell_weights,
)
from .options import (
    Name,
    against_option,
    categories_option,
    compute_options,
    method_options,
    model_option,
    model_options,
    option,
    record_option,
    target_options,
)


# zennit.image.CMAPS, which takes seconds to import
CMAPS = ('gray', 'wred', 'wblue', 'hot', 'cold', 'coldnhot', 'bwr', 'france', 'seismic', 'coolio', 'coleus')
LAST, MIDDLE = '*last*', '*middle*'  # stand for feature maps, and are no modules' names


@click.command(short_help='Explain what a classifier sees in images.')
@click.argument('images', nargs=-1, required=True, type=click.Path(path_type=Path), metavar='IMAGE|FOLDER...')
@option(
    '--method', 'methods', multiple=True, metavar='NAME[@LAYER]',
    help=f'One of {", ".join(METHODS)}; can be given several times. @LAYER takes precedence over --layer, and @input'
    ' is the input.  [default: splitlrp and splitcam]'
)
@option('--compare', is_flag=True, help=f'Add the baselines: {", ".join(BASELINES)}.')
@model_option
@model_options
@categories_option
@method_options
@target_options
@against_option('likely')
@option(
    '--overlay/--no-overlay', default=None,
    help='Lay the maps over the image.  [default: those at a layer]', show_default=False
)
@option('--save-arrays', is_flag=True, help='Save every map as an array of NumPy, too (.npy, float32).')
@option(
    '--support/--no-support', default=True,
    help='Hide the fifth of the image where a map is largest, and compare with hiding others: what becomes of the class'
    ' stands under each map, and in support.json. It takes some eleven forward passes a map.'
)
@option('--cmap', default='bwr', type=Name(CMAPS), help='Zennit\'s color map.')
@option(
    '--percentile', type=click.FloatRange(0., 100., min_open=True), metavar='PERCENT',
    help='The percentile of a map\'s absolute values that gets the color map\'s end: what is larger looks the same.'
    '  [default: 99 for maps at the input, 100 for those at a layer]'
)
@option(
    '--smoothing', type=click.FloatRange(0.), metavar='PIXELS',
    help='The standard deviation of a Gaussian by which pictures of maps are blurred. Of gradients at the input, whose'
    ' signs change from pixel to pixel, these are the absolute values; 0 shows them as they are.  [default: a hundredth'
    ' of the side for gradients at the input, 0 for other maps]'
)
@option('--out', default='explanation.png', type=click.Path(path_type=Path), help='The figure.')
@record_option
@compute_options
def explain(images, methods, compare, model, weights, size, mean, std, output, input, categories, layer, targets,
            top, against, overlay, save_arrays, support, cmap, percentile, smoothing, out, record, device, dtype,
            seed, **given):
    '''Explain what a classifier sees in images, or in those of a folder.

    Writes a figure with a row for each image and class and a column for each method, and every map as a PNG image of
    its own in a folder beside it. After 30 rows, the figure is continued in that folder. With the default colors red
    speaks for the class and blue for the classes of --against; a color bar says where it is otherwise, and which value
    gets the color's end. A method that has nearly the same map of another class by itself is reported, and so is a map
    whose red part matters to the network less than a random or the blue part of the image. Where a method fails, the
    other maps are kept.

    \b
    zennit-dc explain dog.jpg
    zennit-dc explain dog.jpg --top 3 --compare
    zennit-dc explain dog.jpg --target beagle --target collie --against others
    zennit-dc explain dog.jpg --model vgg16 --method splitcam --layer features.26 --alpha 0.3 --stream g
    zennit-dc explain dog.jpg --model my_package.models:build --weights best.pt --categories names.txt
    '''
    chosen = chosen_methods(methods, compare, layer, given)
    require_format(out)
    images, folder = image_files(images), out.with_name(f'{out.stem}_maps')
    require_files(images, weights, categories, out, folder)
    require_known_classes(model, categories, '--target', targets)
    require_known_classes(model, categories, '--against', against)
    hold(out)

    from ..data.classifiers import reading_places
    from ..methods.table import require_layer
    from .explanations import Explanations
    from .pictures import Look, explain_images

    device, dtype = require_compute(device, dtype, seed)
    classifier = classifier_of(model, weights, size, mean, std, output, input, categories).to(device, dtype)
    for _, own in chosen:
        if own not in (None, LAST, MIDDLE):
            require_layer(classifier, own)
    number = count_classes(classifier, device, dtype, categories)
    against = possible_against(against, number)
    tell_weights(classifier, weights)
    tell_classes('--target', targets, number, classifier)
    tell_classes('--against', against, number, classifier)
    chosen = with_feature_maps(chosen, classifier, device, dtype)
    places = reading_places(classifier, [own for _, own in chosen if own is not None], device, dtype)
    explanations = Explanations(
        classifier, chosen, given, seed, targets, top, against, support, len(images) if record else 0
    )
    place, look = {'device': device, 'dtype': dtype}, Look(cmap, overlay, percentile, smoothing)
    heading = heading_of(model, weights, ' and '.join(places.values()), against, given)
    count, figures = explain_images(images, out, folder, explanations, heading, look, save_arrays, place)
    for warning in explanations.warnings():
        click.echo(warning, err=True)
    others = f', and {figures} more figure{"s" * (figures > 1)}' if figures else ''
    click.echo(f'{out} and {count} maps{others} in {folder}')
    if explanations.failed:
        raise click.ClickException(explanations.failure())


def require_files(images, weights, categories, out, folder):
    '''Raise if a file is not there, was given twice, or would be written over.'''
    require_once('IMAGE', [str(path) for path in images])
    require_output(out, [*images, None if weights == 'DEFAULT' else weights, categories], folder)
    for path in images:
        require_file(path)
    require_weights(weights)


def chosen_methods(methods, compare, layer, given):
    '''The methods and their layers that the options name. Raise if an option is for none of them.'''
    named = methods or (f'splitlrp@{layer or MIDDLE}', 'splitcam')
    require_once('--method', methods)
    chosen = list(dict.fromkeys(parse(method, layer) for method in [*(BASELINES if compare else ()), *named]))
    require_used([method for method, _ in chosen], {'layer': layer, **given})
    if layer is not None and layer not in {own for _, own in chosen}:
        raise click.UsageError(f'--layer {layer} belongs to none of the methods')
    return chosen


def with_feature_maps(chosen, classifier, device, dtype):
    '''The methods with the names of layers in place of ``MIDDLE`` and ``LAST``, after saying which these are.'''
    from ..data.classifiers import last_feature_map, middle_feature_map

    if MIDDLE in {own for _, own in chosen}:
        middle = middle_feature_map(classifier, device, dtype)
        if middle is not None:
            which = 'which has about twice the resolution of the last feature map'
            click.echo(f'maps of SplitLRP at layer {middle.place}, {which}')
        chosen = [(name, (middle.name if middle else LAST) if own == MIDDLE else own) for name, own in chosen]
    if LAST in {own for _, own in chosen}:
        last, is_last = last_feature_map(classifier, device, dtype)
        which = 'the last feature map' if is_last else 'the layer before the last feature map, which no module makes'
        click.echo(f'maps at layer {last.place}, {which}; --layer chooses another')
        chosen = list(dict.fromkeys((name, last.name if own == LAST else own) for name, own in chosen))
    return chosen


def heading_of(model, weights, layer, against, given):
    '''The heading of a figure: the model and the options.'''
    model = f'{model} with random weights' if weights is None else model
    names = {'streams': 'stream', 'canonizers': 'canonizer'}
    given = {names.get(name, name): value for name, value in given.items()}
    options = {'layer': layer, 'against': ', '.join(against), **given}
    values = {name: ' '.join(map(str, value)) if isinstance(value, tuple) else value for name, value in options.items()}
    return ', '.join([model, *(f'{name} {value}' for name, value in values.items() if value not in (None, ''))])


def parse(method, layer):
    '''The name and layer of ``NAME[@LAYER]``; the layer is ``LAST`` if one is needed and none was named.'''
    name, at, own = method.partition('@')
    if name not in METHODS:
        raise click.UsageError(f'there is no method {name!r}{meant(name, METHODS)}')
    takes_layer = 'layer' in METHODS[name].parameters
    if at and not takes_layer and own != 'input':
        raise click.UsageError(f'{METHODS[name].title} is computed at the input alone')
    if not takes_layer or own == 'input':
        return name, None
    return name, own if at else layer or (LAST if METHODS[name].needs_layer else None)


@click.command(short_help='List the layers of a model, and their shapes.')
@click.argument('model')
@model_options
@compute_options
def layers(model, weights, size, mean, std, output, input, device, dtype, seed):
    '''List the modules of a model that can be given as a layer, and their output shapes; of tokens, their grid.

    Where a module's output goes straight into an activation, and nowhere else, maps are read after that; the list says
    after which one.

    Weights do not matter here, so that none are loaded unless you name a file.

    \b
    zennit-dc layers vgg16
    zennit-dc layers my_package.models:build --size 32
    '''
    from ..data.classifiers import layers as layers_of

    device, dtype = require_compute(device, dtype, seed)
    weights = None if weights == 'DEFAULT' else weights
    classifier = classifier_of(model, weights, size, mean, std, output, input).to(device, dtype)
    found = layers_of(classifier, device, dtype)
    if not found:
        raise ValueError(f'no module of {model} gives a tensor with channels, height and width, or with tokens')
    width = max(len(each.name) for each in found)
    click.echo(f'{"layer":{width}}  {"channels × height × width":25}  module')
    for name, kind, shape, activation in found:
        after = '' if activation is None else f', read after {activation}'
        click.echo(f'{name:{width}}  {" × ".join(map(str, shape)):25}  {kind}{after}')
