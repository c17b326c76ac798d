'''Commands over whole data sets: attribute, analyze and project.'''
import os
from pathlib import Path

import click

from ..data.files import require_image_source, require_local
from ..methods import METHODS
from .arguments import (
    against_of,
    classifier_of,
    count_classes,
    hold,
    parameters_of,
    require_compute,
    require_known_classes,
    require_output,
    require_used,
    require_weights,
    tell_classes,
    tell_weights,
)
from .options import (
    Name,
    Numbers,
    Shard,
    against_option,
    categories_option,
    compute_options,
    method_options,
    model_option,
    model_options,
    option,
    record_option,
)


file = click.Path(path_type=Path)
ENDINGS = ('_data.h5', '_labels.json')  # of what is written beside the attributions


@click.command()
@click.argument('source', type=file, metavar='FOLDER|FILE.npz')
@option('--out', default='attribution.h5', type=file, help='The file of attributions.')
@option('--method', default='splitcam', type=Name(METHODS), help='The method.')
@model_option
@model_options
@method_options
@option('--target', default='predicted', help='The class to explain: predicted, label, or its name or index.')
@against_option('none')
@categories_option
@option('--label-map', 'labels', type=file, help='A JSON file with the index, word_net_id and name of each class.')
@option('--label-regex', help='Where the label is in an image\'s path: the first group of a regular expression.')
@option('--batch-size', default=16, type=click.IntRange(1), help='The number of images in a batch.')
@option('--workers', default=0, type=click.IntRange(0), help='The number of processes that read images; 0 is a thread.')
@option('--shard', type=Shard(), help='The i-th of n shards, as in 1/8, which may run one by one or at once.')
@option('--join', is_flag=True, help='Write the files of a run of which all shards are there.')
@record_option
@compute_options
def attribute(source, out, method, model, weights, size, mean, std, output, input, categories, layer, target,
              against, labels, label_regex, batch_size, workers, shard, join, record, device, dtype, seed, **given):
    '''Compute the attributions of a whole data set for ViRelAy.

    The images lie in folders named by class (its index, WordNet ID or name), or are the array x of a file of NumPy,
    with their labels as y. Interrupted at any moment, the same command goes on where it was. Images that cannot be read
    are reported and left out.

    \b
    zennit-dc attribute photos --model vgg16 --method splitcam --layer features.26 --out attribution.h5
    zennit-dc attribute photos --label-regex '^(\\d+)_' --layer features.12
    torchrun --nproc-per-node 4 -m zennit_dc attribute photos --device cuda --layer features.12
    zennit-dc attribute photos --layer features.12 --shard 1/2
    '''
    if join and shard is not None:
        raise click.UsageError('--join is for the same command without --shard')
    require_used([method], {'layer': layer, **given})
    inputs = [source, labels, None if weights == 'DEFAULT' else weights, categories]
    require_output(out, inputs, *(out.with_name(out.name.removesuffix('.h5') + end) for end in ENDINGS))

    require_image_source(source)
    require_there(labels)
    require_weights(weights)
    require_known_classes(model, categories, '--target', [target])
    require_known_classes(model, categories, '--against', against)

    from ..data.classifiers import reading_places
    from ..data.images import load_label_map
    from ..methods.table import require_layer
    from ..virelay import attribute as attribute_all

    device, dtype = require_compute(device, dtype, seed)
    classifier = classifier_of(model, weights, size, mean, std, output, input, categories).to(device, dtype)
    if layer is not None:
        require_layer(classifier, layer)
        reading_places(classifier, [layer], device, dtype)
    count = count_classes(classifier, device, dtype, categories)
    target, against = classes_of(method, target, against, count, classifier)
    entries = None if labels is None else load_label_map(labels)
    images = load_images(source, classifier, entries, label_regex)
    if is_first():
        tell_weights(classifier, weights)
        tell_explained(classifier, images, method, target, against)
    skipped = attribute_all(
        classifier, images, out, method, target, entries, batch_size, device, dtype, seed, workers,
        True, against, shard, join, record, **parameters_of(method, layer, given)
    )
    if is_first():
        tell_attributed(out, method, source, shard, len(images) - len(skipped), skipped)


def is_first():
    '''Whether this is the first of the processes of ``torchrun``, which speaks for all of them.'''
    return int(os.environ.get('RANK', 0)) == 0


def require_there(*paths):
    '''Raise if a file was named that is not there.'''
    for path in filter(None, paths):
        require_local(path)
        if not path.exists():
            raise click.UsageError(f'there is no file {path}')


def classes_of(method, target, against, count, classifier):
    '''The class that is explained, and what it is explained against, as :py:func:`~zennit_dc.virelay.attribute` takes
    them, after saying what numbers were taken for.'''
    from ..data.categories import find_class

    told = {'--against': against}
    if target not in ('predicted', 'label'):
        told['--target'] = [target]
        target = find_class(target, count, classifier.categories)
    for name, given in told.items() if is_first() else ():
        tell_classes(name, given, count, classifier)
    against = against_of(against, count, classifier)
    if METHODS[method].explains_loss and against != 'none':
        raise click.UsageError(f'{METHODS[method].title} takes no --against: the loss is a contrast by itself')
    return target, against


def tell_attributed(out, method, source, shard, count, skipped):
    '''Say what was written, and which images were left out.'''
    if shard is not None and not out.exists():
        number, shards = shard
        click.echo(
            f'{out}: shard {number}/{shards} is done; once all are, the same command with --join makes the files'
        )
    else:
        click.echo(f'{out}: {METHODS[method].title} of {count} images of {source}')
    for name, reason in skipped:
        click.echo(f'left out {name}: {reason}')


def tell_explained(classifier, images, method, target, against):
    '''Say which class of each image is explained, and against which.'''
    which = {'predicted': 'the predicted class of each image', 'label': 'the label of each image'}
    named = which[target] if target in which else repr(classifier.category(target))
    others = {'none': 'by itself', 'others': 'rather than all others', 'likely': 'rather than the other likely ones'}
    if METHODS[method].explains_loss:
        contrast = 'by its loss'
    elif isinstance(against, str):
        contrast = others[against]
    else:
        contrast = f'rather than {", ".join(map(classifier.category, against))}'
    click.echo(f'explained is {named}, {contrast}; --target and --against choose others')
    if None in images.labels:
        count = images.labels.count(None)
        click.echo(
            f'{count} of {len(images)} images have no label, as they lie in no folder of a class: they are filed under'
            ' the predicted class'
        )


def load_images(source, classifier, entries, label_regex):
    '''The images of a folder or file.'''
    from ..data.images import ImageArray, ImageFolder, class_folders, label_map

    if source.suffix == '.npz':
        if label_regex is not None:
            raise click.UsageError('--label-regex is for folders')
        return ImageArray.load(source)
    if entries is None:
        entries = label_map(classifier.categories or class_folders(source))
    return ImageFolder(source, entries, label_regex)


@click.command()
@click.argument('attribution', type=file)
@option('--out', default='analysis.h5', type=file, help='The file of the analysis.')
@option('--clusters', default='2,3,4,5,6,7,8', type=Numbers(int), help='The numbers of clusters for k-means.')
@option('--size', default=32, type=click.IntRange(1), help='The height and width to which maps are averaged down.')
@option('--eigenvalues', default=32, type=click.IntRange(1), help='The number of eigenvectors.')
@option('--neighbors', default=10, type=click.IntRange(1), help='The number of nearest neighbors in the graph.')
@option(
    '--by', default='label', type=click.Choice(['label', 'prediction', 'target']),
    help='Whether to group by the label, the predicted or the explained class.'
)
@option('--seed', default=0, type=click.IntRange(0), help='The seed of all random numbers.')
def analyze(attribution, out, clusters, size, eigenvalues, neighbors, by, seed):
    '''Cluster and embed the attributions of each class by CoRelAy.

    Spectral clustering with k-means, and embeddings by t-SNE and UMAP. Interrupted at any moment, the same command goes
    on where it was.

    \b
    zennit-dc analyze attribution.h5 --out analysis.h5
    zennit-dc analyze attribution.h5 --clusters 4,8,16 --by prediction
    '''
    require_output(out, [attribution])
    require_there(attribution)
    hold(out)

    from ..virelay import analyze as analyze_all
    from ..virelay.analyses import remedy

    small = analyze_all(attribution, out, clusters, size, eigenvalues, neighbors, by, seed)
    click.echo(f'{out}: the analysis of {attribution}')
    for name, count in small:
        click.echo(
            f'left out class {name}, whose {count} attributions are too few for {max(clusters)} clusters:'
            f' {remedy(clusters, count)}'
        )


@click.command()
@click.argument('attribution', type=file)
@click.argument('analyses', nargs=-1, required=True, type=file, metavar='ANALYSIS...')
@option('--out', default='project.yaml', type=file, help='The project file.')
@option('--name', help='The project\'s name.  [default: the method and the model]')
@option(
    '--data', type=file,
    help='The data set: an HDF5 file or a folder of images of the input\'s size.  [default: what was attributed]'
)
@option('--label-map', 'labels', type=file, help='The label map.  [default: the one beside the attributions]')
def project(attribution, analyses, out, name, data, labels):
    '''Write the project file for ViRelAy.

    \b
    zennit-dc project attribution.h5 analysis.h5 --out project.yaml
    python -m virelay project.yaml
    '''
    require_output(out, [attribution, *analyses, data, labels])
    require_there(attribution, *analyses, labels)
    hold(out)

    from ..virelay import project as write_project

    write_project(attribution, analyses, out, name, data, labels)
    click.echo(f'{out}: open it with\n\n    python -m virelay {out}\n\nand http://localhost:8000 in a browser.')
