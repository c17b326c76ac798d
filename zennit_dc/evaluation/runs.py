'''Runs of an evaluation: every result is kept as soon as it is there, so that none is computed twice.'''
import json
import math
import os
import sys
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import lock_descriptor
from tqdm import tqdm
from zennit.attribution import Gradient

from ..attribution import relevance_of
from ..composites import SplitCAM
from ..data.fingerprints import description
from ..data.parts import atomic_write, differences
from ..data.processes import local_device, process_group
from ..data.progress import progress_bar
from ..methods import METHODS, attributor, replaying, saliency_map
from .metrics import METRICS, Explained
from .mosaics import Mosaics
from .randomisation import randomised


COLUMNS = ['image', 'method', 'setting', 'metric', 'score']
KEPT = 8  # attributors that are recorded


def evaluate(
    classifier, images, indices, settings, metrics, out, device='cpu', dtype=torch.float32, seed=0, progress=True,
    randomised_layers=3, selectivity_patch=8, flipping_step=112, sensitivity_samples=25, record=True
):
    '''Score maps of the labelled classes of images by metrics.

    The scores of each map are appended to a file in the folder ``out`` as soon as they are there. Started again, the
    run goes on where it was; more images, settings or metrics may be added. Started by ``torchrun``, the processes
    share the work, by this folder, which all must reach.

    Where a map or a logit is not finite, this is reported, and the score is NaN.

    Attribution Localisation is computed on the map's positive part, so that it is always in [0, 1]; see
    :py:func:`zennit_dc.evaluation.metrics.attribution_localisation`.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier, which is moved to the device and dtype.
    images : :py:class:`~zennit_dc.evaluation.data.MaskedImages`
        The images.
    indices : sequence of int
        The indices of the images to be evaluated.
    settings : list[Setting]
        The settings, see :py:func:`zennit_dc.evaluation.settings.grid`.
    metrics : sequence of str
        The names of the metrics in :py:data:`zennit_dc.evaluation.metrics.METRICS`. The Grid Pointing Game is for
        :py:class:`~zennit_dc.evaluation.mosaics.Mosaics`, and all others are for images.
    out : str or path
        The folder of the results.
    device, dtype
        Where and how to compute.
    seed : int, optional
        The seed of Max Sensitivity's noise and of randomised layers.
    progress : bool, optional
        Whether to show a progress bar, with an estimate of the time that is left; without a terminal, a line each
        minute.
    randomised_layers : int, optional
        The number of layers that are randomised, see :py:func:`~zennit_dc.evaluation.randomisation.randomised`.
    selectivity_patch : int, optional
        The height and width of Selectivity's patches in pixels: twice as large ones take a quarter of the time.
    flipping_step : int, optional
        The number of pixels in a step of Pixel Flipping.
    sensitivity_samples : int, optional
        The number of noisy images of Max Sensitivity.
    record : bool, optional
        Whether calls may be recorded and replayed where that pays, see :py:func:`zennit_dc.methods.replaying`. The
        scores are the same. The time of a map is that of a call without a recording.

    Returns
    -------
    :py:class:`pandas.DataFrame`
        The columns ``image``, ``method``, ``setting``, ``metric`` and ``score``, with a row for each result that was
        asked for.

    Raises
    ------
    ValueError
        If the folder is of another run: of another model, weights, preprocessing, data set, device, dtype, seed, number
        of randomised layers, size of patches or steps, or number of samples; if another process is writing to it; or if
        a parameter is wrong.
    UnreadableImage
        If an image or mask cannot be read.
    '''
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f'evaluations are computed in float32 or float64, not in {dtype}')
    require_metrics(metrics, images)
    device, out = local_device(device), Path(out)
    classifier.to(device, dtype)
    run = {**description(classifier, images, device, dtype, seed), 'randomised layers': randomised_layers}
    sizes = {
        'selectivity_patch': selectivity_patch, 'flipping_step': flipping_step,
        'sensitivity_samples': sensitivity_samples
    }
    run.update({name.replace('_', ' '): value for name, value in sizes.items()})
    needs_random = any(METRICS[name].needs_random for name in metrics)
    other = randomised(classifier, randomised_layers, seed) if needs_random else classifier
    with process_group(device) as (rank, size, wait):
        if rank == 0:
            require_folder(out, run)
        wait()
        done = finished(out)
        tasks = unfinished(images, indices, settings, metrics, done)
        # in no order, so that shares are alike and the time left can be estimated
        tasks = [tasks[each] for each in np.random.default_rng(seed).permutation(len(tasks))[rank::size]]
        wait()
        replays = Replays(tasks if record else (), sensitivity_samples)
        with appended(out / f'scores-{rank}.jsonl') as file:
            file.write('\n')  # ends a line that was being written when the last run was killed
            for index, method, group in progress_bar(tasks, 'maps', unit='map', shown=progress and rank == 0):
                sample = images.sample(index)
                sample = sample._replace(input=sample.input.to(device, dtype))
                results = results_of(classifier, other, sample, method, group, seed, sizes, replays)
                store_all(file, images, index, group, results)
        wait()
        done = finished(out)
    asked = [(*key(images, index, setting), metric) for index in indices for setting in settings for metric in metrics]
    return pd.DataFrame([(*each, done[each]) for each in asked], columns=COLUMNS)


def require_metrics(metrics, images):
    '''Raise if a metric is none of images, or none of mosaics.'''
    is_mosaics = isinstance(images, Mosaics)
    known = [name for name, metric in METRICS.items() if metric.needs_mosaic == is_mosaics]
    for name in metrics:
        if name not in known:
            raise ValueError(f'{"mosaics" if is_mosaics else "images"} have no metric {name!r}, but {", ".join(known)}')


@contextmanager
def appended(path):
    '''Open a file to append lines, for this process alone.'''
    with open(path, 'a', encoding='utf-8') as file:
        if not lock_descriptor(file.fileno(), blocking=False):
            raise ValueError(f'another process writes to {path}: wait for it, or choose another --out')
        yield file


def store(file, key, scores):
    '''Append a result to a file, so that it is on the disk.'''
    file.write(json.dumps([*key, scores]) + '\n')
    file.flush()
    os.fsync(file.fileno())


def store_all(file, images, index, group, results):
    '''Store the results of a map, and those that could not be computed as not a number.'''
    left = dict(group)
    try:
        for setting, scores in results:
            store(file, key(images, index, setting), scores)
            del left[setting]
    except FloatingPointError as error:
        for setting, missing in left.items():
            tqdm.write(f'{name_of(images, index, setting)}: no score, as {error}', file=sys.stderr)
            store(file, key(images, index, setting), dict.fromkeys(missing, math.nan))
    except (ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f'{name_of(images, index, group[0][0])}: {error}') from error


def results_of(classifier, other, sample, method, group, seed, sizes, replays):
    '''The scores of one map, and of its absolute value.

    Parameters
    ----------
    classifier, other : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier, and that with randomised layers.
    sample : :py:class:`~zennit_dc.evaluation.data.Sample`
        The image, where the classifier is, in its dtype.
    method : str
        The method's name.
    group : list[tuple[:py:class:`~zennit_dc.evaluation.settings.Setting`, list[str]]]
        The settings of this map, each with the metrics that are missing.
    seed : int
        See :py:func:`evaluate`.
    sizes : dict[str, int]
        The sizes of metrics by their names, see :py:class:`~zennit_dc.evaluation.metrics.Explained`.
    replays : :py:class:`Replays`
        The attributors that are kept.

    Yields
    ------
    tuple[:py:class:`~zennit_dc.evaluation.settings.Setting`, dict[str, float]]
        Each setting with its scores.
    '''
    arguments, against = group[0][0].arguments, group[0][0].against
    if 'masks' in METHODS[method].parameters:
        arguments['masks'] = sample.mask[None]
    if 'seed' in METHODS[method].parameters:
        arguments.setdefault('seed', seed)
    place = sample.input.device, sample.input.dtype, against
    plain = attributor(method, classifier, **arguments)
    own = replays(plain, group[0][0])
    own_randomised = replays(attributor(method, other, **arguments), group[0][0], is_randomised=True)
    explain, explain_randomised, timed = (
        partial(explain_by, each, *place) for each in (own, own_randomised, plain)
    )
    layer = arguments.get('layer')
    reference = Gradient(classifier.model, None if layer is None else SplitCAM(layer, alpha=.5))
    map, = explain(sample.input[None], [sample.label])
    shared = {}
    for setting, missing in group:
        left = [metric for metric in missing if metric not in shared]
        explained = Explained(
            classifier.model, sample.input[None], sample.mask[None],
            torch.tensor([sample.label], device=sample.input.device), (map.abs() if setting.absolute else map)[None],
            setting.absolute, explain, explain_randomised,
            *(partial(attribution_by, each, *place) for each in (own, reference)), seed, **sizes, timed=timed,
            by_itself=None if against == 'none' else partial(explain_by, own, *place[:2], None)
        )
        scores = {metric: torch.as_tensor(METRICS[metric].score(explained)).item() for metric in left}
        shared.update({  # the absolute value has the same
            metric: value for metric, value in scores.items() if METRICS[metric].of_absolute
            or ((map >= 0.).all() and METRICS[metric].is_of_map_alone)
        })
        yield setting, {metric: shared[metric] if metric in shared else scores[metric] for metric in missing}


class Replays:
    '''The attributors of a run that are called most, which are recorded and kept from one image to the next.

    Parameters
    ----------
    tasks : sequence of tuple
        What is left to do, see :py:func:`unfinished`.
    samples : int
        The number of noisy images of Max Sensitivity.
    '''
    def __init__(self, tasks, samples):
        calls = Counter()
        for _, _, group in tasks:
            asked = {metric for _, missing in group for metric in missing}
            calls[key_of(group[0][0], False)] += 1 + (samples + 1) * ('max_sensitivity' in asked)
            calls[key_of(group[0][0], True)] += any(METRICS[metric].needs_random for metric in asked)
        self.calls, self.kept = dict(calls.most_common(KEPT)), {}

    def __call__(self, attributor, setting, is_randomised=False):
        '''The attributor of a setting, or the one that is kept in its place.'''
        key = key_of(setting, is_randomised)
        if key in self.kept:
            return self.kept[key]
        found = replaying(attributor, self.calls.get(key, 0))
        if found is not attributor:
            self.kept[key] = found
        return found


def key_of(setting, is_randomised):
    '''What tells the attributors of a run apart.'''
    parameters = tuple((name, value) for name, value in setting.parameters if name != 'against')
    return setting.method, parameters, is_randomised


def unfinished(images, indices, settings, metrics, done):
    '''What is left to do, by image and map: the map's settings with the metrics that are missing. There may be two
    settings, as the absolute value is one of its own.'''
    tasks = []
    for index in indices:
        groups = {}
        for setting in settings:
            missing = [metric for metric in metrics if (*key(images, index, setting), metric) not in done]
            if missing:
                groups.setdefault(setting[:2], []).append((setting, missing))
        tasks += [(index, method, group) for (method, _), group in groups.items()]
    return tasks


def key(images, index, setting):
    '''What tells the results of a map apart.'''
    return images.names[index], setting.title, setting.name


def name_of(images, index, setting):
    '''What messages call the results of a map.'''
    return ', '.join(filter(None, key(images, index, setting)))


def require_folder(out, run):
    '''Make the folder of a run, or raise if it is of another one.'''
    out.mkdir(parents=True, exist_ok=True)
    path, run = out / 'run.json', json.loads(json.dumps(run))
    if path.is_file():
        different = differences(json.loads(path.read_text(encoding='utf-8')), run)
        if different:
            raise ValueError(
                f'{out} holds results of another run, which differs in {", ".join(different)}: choose another --out'
            )
    else:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(run, indent=1), encoding='utf-8')


def finished(out):
    '''The scores by image, method, setting and metric. A line that was not written to its end is as good as none.'''
    results = {}
    for path in sorted(Path(out).glob('scores-*.jsonl')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                image, method, setting, scores = json.loads(line)
            except ValueError:
                continue
            results.update({(image, method, setting, metric): score for metric, score in scores.items()})
    return results


def attribution_by(attributor, device, dtype, against, inputs, targets):
    '''The attributions of images and classes by an attributor, in the images' shape.'''
    targets = torch.as_tensor(targets, device=device)
    return attributor(inputs.to(dtype), relevance_of(targets, against))[1].detach()


def explain_by(attributor, device, dtype, against, inputs, targets):
    '''The maps of images and classes by an attributor, of shape (batch, height, width).'''
    return saliency_map(attributor, inputs.to(dtype), torch.as_tensor(targets, device=device), against)[1]
