'''The attributions of a whole data set, in the layout of ViRelAy's databases.'''
import operator
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..attribution import relevance_of, require_scores
from ..data.classifiers import black_input
from ..data.files import UnreadableImage
from ..data.fingerprints import as_json, description
from ..data.images import class_folders, label_map
from ..data.parts import Parts, held
from ..data.processes import local_device, process_group
from ..data.progress import progress_bar
from ..data.threads import ahead, meanwhile
from ..methods import METHODS, attributor, replaying
from ..methods.table import method_named
from .databases import beside, merge, require_same_run, skipped_images, skipped_of


def attribute(
    classifier, images, out, method='splitcam', target='predicted', labels=None, batch_size=16, device='cpu',
    dtype=torch.float32, seed=0, workers=0, progress=True, against=None, shard=None, join=False, record=True,
    **parameters
):
    '''Compute the attributions of a data set, and write them for ViRelAy.

    Three files are written: ``out`` itself with the data sets ``attribution`` of shape (images, 3, height, width),
    ``prediction`` of shape (images, classes), and ``label``, ``target`` (the explained class) and ``name`` of shape
    (images,); ``*_data.h5`` beside it with the images as the model sees them, ``data`` of shape (images, height, width,
    3), and ``label``; and ``*_labels.json``, the label map. The sum of an attribution over its three channels is the
    map: the channels are the attribution's own, or each a third of their sum if the model's input does not have three
    channels, which ViRelAy needs. Images that cannot be read are reported and left out. An image without a label gets
    the predicted class as its label.

    Every finished batch is kept in a folder ``out`` + ``.parts`` until the end, so that an interrupted run goes on
    where it was. The images of the next batch are read, and the last part is written, while the model runs. Started by
    ``torchrun``, the processes share the batches, by this folder, which all must reach.

    A shard makes every n-th part, in a folder ``out`` + ``.shard-i-of-n.parts``, and knows nothing of other shards, so
    that each may run, be killed and run again on its own. A run that is no shard takes what shards have finished, makes
    what is left, and writes the files, which are the same as without shards.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier, which is moved to the device and dtype.
    images : :py:class:`~zennit_dc.data.images.ImageFolder` or :py:class:`~zennit_dc.data.images.ImageArray`
        The images.
    out : str or path
        The file of attributions.
    method : str, optional
        The method, by its name in :py:data:`zennit_dc.methods.METHODS`.
    target : int or {'predicted', 'label'}, optional
        The class to be explained.
    labels : list[dict], optional
        The label map. Default is made of the classifier's own categories; without categories, of the folders in which
        the images lie; without folders, of numbers.
    batch_size : int, optional
        The number of images in a batch.
    device : str or :py:class:`torch.device`, optional
        Where to compute.
    dtype : :py:class:`torch.dtype`, optional
        The precision to compute in. Attributions are stored in single precision.
    seed : int, optional
        The seed of PyTorch's random numbers.
    workers : int, optional
        The number of processes that read images, or 0 for a thread of this one.
    progress : bool, optional
        Whether to show a progress bar.
    against : {'none', 'others', 'likely'}, int or list of int, optional
        The classes to explain the class against, see :py:func:`~zennit_dc.attribution.contrast`. Default is none.
    shard : tuple[int, int], optional
        The number of a shard, from 1 on, and the number of shards. Default is to make the files.
    join : bool, optional
        Whether shards must have made all parts, so that nothing is computed.
    record : bool, optional
        Whether calls may be recorded and replayed where that pays, see :py:func:`zennit_dc.methods.replaying`. The
        files are the same.
    **parameters
        The method's parameters.

    Returns
    -------
    list[tuple[str, str]]
        The name of each image, or of each image of the shard, that could not be read, and why.

    Raises
    ------
    ValueError
        If a parameter is wrong, if ``out`` exists from another run, if another process makes the same parts, if there
        are parts missing to join, or if no image can be read.
    OSError
        If there is no space left on the disk.
    FloatingPointError
        If a map is not finite.
    '''
    import h5py  # noqa: F401 (not only at the end of the run)

    require_run(images, target, batch_size, shard, join)
    target = target if target in ('label', 'predicted') else operator.index(target)
    device, out = local_device(device), Path(out)
    own_seed = {'seed': seed} if 'seed' in method_named(method).parameters else {}
    chosen = attributor(method, classifier, **own_seed, **parameters)
    classifier.to(device, dtype)
    run = {
        **description(classifier, images, device, dtype, seed), 'method': METHODS[method].title, 'target': target,
        'against': against or 'none', 'batch size': batch_size, **described(parameters, classifier)
    }
    batches = Batches(classifier, images, batch_size)
    parts = Parts(out, run, len(batches), shard)
    if out.exists():
        require_same_run(out, run)
        parts.remove()
        return skipped_images(out)
    require_new(out)
    if join:
        parts.require_shards()
    left = parts.missing() if shard else parts.left()
    require_space(classifier, out, 0 if shard else len(images), len(left) * batch_size)
    labels = require_labels(classifier, images, labels, target, device, dtype)
    with held(parts.folder if shard else out, parts.folder / 'lock'), process_group(device) as (rank, size, wait):
        mine = own_parts(parts, out, rank, size, wait, shard)
        chosen = replaying(chosen, len(mine)) if record else chosen
        explain = partial(explain_batch, chosen, images, target, against, device, dtype)
        with image_bar(batches.sizes, mine, parts.numbers[rank::size], progress and rank == 0) as bar, chosen:
            save_parts(parts, mine, batches, workers, explain, seed, bar)
        wait()
        if rank == 0 and shard is None:
            merge(parts, images, out, labels)
        wait()
    return skipped_images(out) if shard is None else skipped_of(parts, images)


def require_run(images, target, batch_size, shard, join):
    '''Raise if a parameter of :py:func:`attribute` is wrong, or an image lacks the label that is to be explained.'''
    if batch_size < 1:
        raise ValueError(f'the batch size must be positive, not {batch_size}')
    if shard is not None and (join or not 1 <= shard[0] <= shard[1]):
        raise ValueError(f'a shard is the i-th of n, from 1 on, and joins nothing: {shard[0]}/{shard[1]} is wrong')
    if target == 'label' and None in images.labels:
        raise ValueError(f'{images.names[images.labels.index(None)]} has no label that could be explained')


def described(parameters, classifier):
    '''A method's parameters as JSON has them. A function for α is described by its values at the modules.'''
    alpha = parameters.get('alpha')
    if callable(alpha):
        parameters = {**parameters, 'alpha': {name: alpha(name) for name, _ in classifier.model.named_modules()}}
    return {name: as_json(value) for name, value in parameters.items()}


def require_new(out):
    '''Raise if files that a run writes beside its result are there, and not from a run that was interrupted.'''
    for path in (beside(out, '_data.h5'), beside(out, '_labels.json')):
        if path.exists() and not Path(f'{out}.parts').exists():
            raise ValueError(f'{path} exists already: choose another --out')


def own_parts(parts, out, rank, size, wait, shard):
    '''The numbers of the parts that are left to a process; no process begins before all of them know theirs.'''
    if rank == 0:
        if out.exists():  # the run that held it has ended meanwhile
            raise ValueError(f'another run has just written {out}: start again, or choose another --out')
        parts.open()
        if shard is None:
            parts.collect()
    wait()
    if not parts.folder.is_dir():
        raise OSError(f'{parts.folder} is not there: all processes need the same folder')
    parts.require_same_run()
    mine = [batch for batch in parts.missing() if parts.numbers.index(batch) % size == rank]
    wait()
    return mine


def save_parts(parts, mine, batches, workers, explain, seed, bar):
    '''Explain the batches that are left to a process, and save each as a part.

    Parameters
    ----------
    parts : :py:class:`~zennit_dc.data.parts.Parts`
        The parts.
    mine : list[int]
        The numbers of the batches.
    batches : :py:class:`Batches`
        All batches.
    workers : int
        The number of processes that read images, or 0 for a thread of this one.
    explain : callable
        What returns the arrays of a batch of its indices and inputs.
    seed : int
        The seed, to which a batch's number is added.
    bar : :py:class:`tqdm.tqdm`
        The progress bar of images.
    '''
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=mine, num_workers=workers)
    with meanwhile(parts.save) as save:
        for read, batch in zip(ahead(loader), mine):
            if isinstance(read, OSError):
                raise read
            indices, inputs, shown, failures = read
            torch.manual_seed(seed + batch)
            explained = explain(indices, inputs)
            save(batch, index=np.array(indices), image=shown, **explained, **left_out(batches.images, failures))
            bar.update(batches.sizes[batch])


def image_bar(sizes, mine, all, progress):
    '''A progress bar that counts the images of all batches of a process, of which some are left to it.'''
    total, left = (sum(sizes[batch] for batch in batches) for batches in (all, mine))
    return progress_bar(desc='attributions', total=total, initial=total - left, unit='image', shown=progress)


def left_out(images, failures):
    '''Report the images of a batch that could not be read, and return them as arrays.'''
    for index, reason in failures:
        tqdm.write(f'skipped {images.names[index]}: {reason}', file=sys.stderr)
    return {
        'skipped': np.array([index for index, _ in failures], int),
        'reason': np.array([reason for _, reason in failures], str),
    }


class Batches(torch.utils.data.Dataset):
    '''The images in batches.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier, of which the preprocessing is used.
    images : :py:class:`~zennit_dc.data.images.ImageFolder` or :py:class:`~zennit_dc.data.images.ImageArray`
        The images.
    size : int
        The number of images in a batch.
    '''
    def __init__(self, classifier, images, size):
        self.classifier = classifier._replace(model=None)
        self.images = images
        self.batches = [range(len(images))[start:start + size] for start in range(0, len(images), size)]

    @property
    def sizes(self):
        '''The number of images in each batch.'''
        return [len(batch) for batch in self.batches]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, batch):
        '''What :py:meth:`read` returns, or the error of the disk that it raises, so that it comes as it is from another
        process.'''
        try:
            return self.read(batch)
        except OSError as error:
            return error

    def read(self, batch):
        '''The indices and inputs of the readable images, what they look like, and the failures.'''
        indices, inputs, failures = [], [], []
        for index in self.batches[batch]:
            try:
                inputs.append(self.classifier.preprocessing(self.images.image(index, self.classifier.mode)))
                indices.append(index)
            except UnreadableImage as error:
                failures.append((index, str(error)))
        if not inputs:
            return indices, None, np.zeros(0, np.uint8), failures
        inputs = torch.stack(inputs)
        shown = torch.round(self.classifier.pixels(inputs) * 255.).to(torch.uint8)
        return indices, inputs, shown.contiguous().numpy(), failures


def explain_batch(chosen, images, target, against, device, dtype, indices, inputs):
    '''The attributions, predictions and explained classes of a batch, as arrays.'''
    if inputs is None:
        return {}
    if target == 'label':
        target = torch.tensor([images.labels[index] for index in indices])
    elif target == 'predicted':
        target = None
    relevance = relevance_of(target, against)
    explained = []

    def remember(output):
        explained.append(relevance(output))
        return explained[-1]

    output, attribution = chosen(inputs.to(device, dtype), remember)
    attribution = attribution.detach().float().cpu()
    if not torch.isfinite(attribution).all():
        raise FloatingPointError(f'the map of one of the images {", ".join(images.names[i] for i in indices)} is not'
                                 ' finite in single precision')
    if attribution.shape[1] != 3:
        attribution = (attribution.sum(1, keepdim=True) / 3.).expand(-1, 3, -1, -1)
    return {
        'attribution': attribution.contiguous().numpy(), 'prediction': output.detach().float().cpu().numpy(),
        'target': explained[-1].argmax(1).cpu().numpy()
    }


def require_labels(classifier, images, labels, target, device, dtype):
    '''The label map: the given one, or one made of the classifier's categories, of the folders, or of mere numbers.
    Raise if it does not fit the model's classes or the images' labels, or if there is no class to explain.'''
    with torch.no_grad():
        classes = require_scores(classifier.model(black_input(classifier)[None].to(device, dtype))).shape[1]
    if target not in ('label', 'predicted') and not 0 <= target < classes:
        raise ValueError(f'there is no class {target}, but those from 0 to {classes - 1}')
    if labels is None:
        names = classifier.categories
        if names is None and images.folder is not None and None not in images.labels:
            names = class_folders(images.folder)
        if names is None:
            names = [classifier.category(index) for index in range(classes)]
        if len(names) != classes:
            raise ValueError(f'{classifier.name} has {classes} classes, but there are names of {len(names)}: give a'
                             ' label map')
        labels = label_map(names, images.folders)
    known = {entry['index'] for entry in labels}
    for name, label in zip(images.names, images.labels):
        if label is not None and not (label in known and 0 <= label < classes):
            raise ValueError(f'{name} has the label {label}, but {classifier.name} has {classes} classes, of which'
                             f' {len(known)} are in the label map')
    if not set(range(classes)) <= known and None in images.labels:
        raise ValueError(f'the label map has {len(known)} of the {classes} classes, any of which may be predicted')
    return labels


def require_space(classifier, out, count, missing):
    '''Raise if the disk has no space for the parts and the result.'''
    height, width = black_input(classifier).shape[1:]
    needed = (count + missing) * height * width * 3 * 5
    folder = next(parent for parent in out.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f'there is no space for {count} attributions in {folder}: {needed / 1e9:.2f} GB are needed, but'
            f' {free / 1e9:.2f} GB are free'
        )
