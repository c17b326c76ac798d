'''Runs of an evaluation: every result is kept as soon as it is there, so that none is computed twice.'''
import itertools
import json
import os
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from ..attributions import fingerprint
from ..distributed import local_device, process_group
from ..methods import METHODS, attributor, saliency_map
from ..parts import differences, written
from .metrics import (
    METRICS, attribution_localisation, max_sensitivity, pixel_flipping, pointing_game, selectivity,
)


COLUMNS = ['image', 'method', 'setting', 'metric', 'score']


class Setting(NamedTuple):
    '''A method with its parameters.

    Parameters
    ----------
    method : str
        The method's name in :py:data:`zennit_dc.methods.METHODS`.
    parameters : tuple[tuple[str, object], ...]
        The names and values of its parameters.
    absolute : bool
        Whether the map's absolute value is evaluated.
    '''
    method: str
    parameters: tuple = ()
    absolute: bool = False

    @property
    def name(self):
        '''The parameters for people, by which results are told apart.'''
        values = [f'{name} {"input" if value is None else value}' for name, value in self.parameters]
        return ', '.join([*values, *(['abs'] if self.absolute else [])])


def grid(methods, absolute=(False, True), **choices):
    '''All settings of methods.

    Parameters
    ----------
    methods : list[str]
        The methods' names.
    absolute : sequence of bool, optional
        Whether to evaluate the maps as they are, their absolute values, or both.
    **choices
        For parameters their values. A method takes those that it has; of streams, those that it has.

    Returns
    -------
    list[Setting]
        The settings, by method.

    Raises
    ------
    ValueError
        If there is no such method, or there are no values for the layer or stream of a method that takes some.
    '''
    settings = []
    for method in methods:
        if method not in METHODS:
            raise ValueError(f'there is no method {method!r}, but {", ".join(METHODS)}')
        chosen = METHODS[method]
        own = {name: values for name, values in choices.items() if name in chosen.parameters}
        if own.get('stream'):
            own['stream'] = [stream for stream in own['stream'] if stream in chosen.streams]
            if not own['stream']:
                raise ValueError(f'{chosen.title} needs one of the streams {", ".join(chosen.streams)}')
        if chosen.needs_layer and 'layer' in own:
            own['layer'] = [layer for layer in own['layer'] if layer is not None]
        if chosen.needs_layer and not own.get('layer'):
            raise ValueError(f'{chosen.title} needs layers')
        own = {name: values for name, values in own.items() if values}
        for values in itertools.product(*own.values()):
            settings += [Setting(method, tuple(zip(own, values)), each) for each in absolute]
    return settings


def evaluate(
    classifier, images, indices, settings, metrics, out, device='cpu', dtype=torch.float32, seed=0, progress=True
):
    '''Score maps of the labelled classes of images by metrics.

    The scores of each map are appended to a file in the folder ``out`` as soon as they are there. Started again, the
    run goes on where it was; more images, settings or metrics may be added. Started by ``torchrun``, the processes
    share the work, by this folder, which all must reach.

    Attribution Localisation is that of the map's positive part, which is always in [0, 1]; see
    :py:func:`zennit_dc.evaluation.metrics.attribution_localisation`.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.models.Classifier`
        The classifier, which is moved to the device and dtype.
    images : :py:class:`~zennit_dc.evaluation.data.MaskedImages`
        The images.
    indices : sequence of int
        Those of the images to be evaluated.
    settings : list[Setting]
        The settings, see :py:func:`grid`.
    metrics : sequence of str
        The names of the metrics in :py:data:`zennit_dc.evaluation.metrics.METRICS`, but for the Grid Pointing Game.
    out : str or path
        The folder of the results.
    device, dtype
        Where and how to compute.
    seed : int, optional
        The seed of Max Sensitivity.
    progress : bool, optional
        Whether to show a progress bar, with an estimate of the time that is left.

    Returns
    -------
    :py:class:`pandas.DataFrame`
        The columns ``image``, ``method``, ``setting``, ``metric`` and ``score``, with a row for each result that was
        asked for.

    Raises
    ------
    ValueError
        If the folder is of another model, data set or seed, or a parameter is wrong.
    '''
    unknown = sorted(set(metrics) - (set(METRICS) - {'grid_pointing_game'}))
    if unknown:
        raise ValueError(f'there is no metric {unknown[0]!r} for images with masks, but {", ".join(METRICS)}')
    device, out = local_device(device), Path(out)
    classifier.to(device, dtype)
    run = {
        'model': classifier.name, 'weights': fingerprint(classifier.model), 'device': device.type,
        'preprocessing': ' '.join(repr(classifier.preprocessing).split()), 'dtype': str(dtype).removeprefix('torch.'),
        'images': images.fingerprint(), 'seed': seed
    }
    with process_group(device) as (rank, size, wait):
        if rank == 0:
            require_folder(out, run)
        wait()
        done = finished(out)
        tasks = unfinished(images, indices, settings, metrics, done)[rank::size]
        wait()
        with open(out / f'scores-{rank}.jsonl', 'a', encoding='utf-8') as file:
            file.write('\n')  # ends a line that was being written when the last run was killed
            for index, (method, parameters), group in tqdm(
                tasks, 'maps', unit='map', disable=not progress or rank > 0
            ):
                sample = images.sample(index)
                sample = sample._replace(input=sample.input.to(device, dtype))
                masks = {'masks': sample.mask[None]} if 'masks' in METHODS[method].parameters else {}
                chosen = attributor(method, classifier, **dict(parameters), **masks)

                def explain(inputs, targets, chosen=chosen):
                    return saliency_map(chosen, inputs.to(dtype), torch.as_tensor(targets, device=device))[1]

                map, = explain(sample.input[None], torch.tensor([sample.label]))
                known = {}
                for setting, missing in group:
                    own = map.abs() if setting.absolute else map
                    left = [metric for metric in missing if metric not in known]
                    scores = score(classifier.model, sample, own, explain, left, seed)
                    known.update({
                        metric: value for metric, value in scores.items()
                        if metric == 'max_sensitivity' or (map >= 0.).all()  # those of the absolute value are the same
                    })
                    scores = {metric: known[metric] if metric in known else scores[metric] for metric in missing}
                    file.write(json.dumps([*key(images, index, setting), scores]) + '\n')
                    file.flush()
                    os.fsync(file.fileno())
        wait()
        done = finished(out)
    asked = [(*key(images, index, setting), metric) for index in indices for setting in settings for metric in metrics]
    return pd.DataFrame([(*each, done[each]) for each in asked], columns=COLUMNS)


def unfinished(images, indices, settings, metrics, done):
    '''What is left to do: for each image and map its settings, which may be two, with the metrics that are missing.'''
    tasks = []
    for index in indices:
        groups = {}
        for setting in settings:
            missing = [metric for metric in metrics if (*key(images, index, setting), metric) not in done]
            if missing:
                groups.setdefault(setting[:2], []).append((setting, missing))
        tasks += [(index, *each) for each in groups.items()]
    return tasks


def key(images, index, setting):
    '''What tells the results of a map apart.'''
    return images.names[index], METHODS[setting.method].title, setting.name


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
        with written(path) as temporary:
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


def score(model, sample, map, explain, metrics, seed):
    '''The scores of a map.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    sample : :py:class:`~zennit_dc.evaluation.data.Sample`
        The image, where the model is, and its mask.
    map : :py:class:`torch.Tensor`
        The map of shape (height, width).
    explain : callable
        The method, from inputs and targets to maps.
    metrics : sequence of str
        The metrics.
    seed : int
        The seed of Max Sensitivity.

    Returns
    -------
    dict[str, float]
        The score by each metric.
    '''
    input, map, mask = sample.input[None], map[None], sample.mask[None]
    target = torch.tensor([sample.label], device=input.device)
    groups = {
        ('selectivity',): lambda: selectivity(model, input, target, map),
        ('attribution_localisation',): lambda: attribution_localisation(map, mask, positive=True),
        ('pointing_game',): lambda: pointing_game(map, mask),
        ('pixel_flipping_5', 'pixel_flipping_20'): lambda: pixel_flipping(model, input, target, map, (.05, .2))[:, 0],
        ('max_sensitivity',): lambda: max_sensitivity(model, input, target, explain, seed=seed),
    }
    results = {}
    for names, function in groups.items():
        if set(names) & set(metrics):
            results.update(zip(names, function()))
    return {metric: float(results[metric]) for metric in metrics}
