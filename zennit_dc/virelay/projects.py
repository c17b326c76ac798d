'''The project with which ViRelAy shows attributions and their analysis.'''
import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import load_label_map
from ..data.parts import atomic_write
from .databases import attribute_of, beside


def project(attribution, analysis, out, name=None, data=None, labels=None):
    '''Write the project file that ViRelAy opens.

    Parameters
    ----------
    attribution : str or path
        The file of attributions, as :py:func:`~zennit_dc.virelay.attribute` writes it.
    analysis : str or path or sequence
        The file of the analysis, as :py:func:`~zennit_dc.virelay.analyze` writes it, or several.
    out : str or path
        The project file. It names the others by their paths relative to its own folder.
    name : str, optional
        The project's name. Default is made of the method and the model.
    data : str or path, optional
        The data set: an HDF5 file, or the folder of the images, if these are what the model sees and lie in folders
        named by the WordNet IDs of the label map. Default is the file that :py:func:`~zennit_dc.virelay.attribute`
        wrote.
    labels : str or path, optional
        The label map. Default is the file that :py:func:`~zennit_dc.virelay.attribute` wrote.

    Raises
    ------
    ValueError
        If a file is missing or of another kind.
    '''
    import yaml

    analyses = [analysis] if isinstance(analysis, (str, os.PathLike)) else list(analysis)
    attribution, out, *analyses = map(Path, (attribution, out, *analyses))
    data = beside(attribution, '_data.h5') if data is None else Path(data)
    labels = beside(attribution, '_labels.json') if labels is None else Path(labels)
    for path in (attribution, *analyses, labels):
        if not path.is_file():
            raise ValueError(f'there is no file {path}')
    run, names = read_run(attribution, analyses)

    def relative(path):
        return os.path.relpath(path.resolve(), out.resolve().parent)

    if data.is_dir():
        dataset = image_directory(data, names, own_labels(attribution), load_label_map(labels), attribution, out)
    elif data.is_file():
        require_data_set(data, len(names))
        dataset = {'name': data.stem, 'type': 'hdf5', 'path': relative(data)}
    else:
        raise ValueError(f'there is no file or folder {data}')
    content = {
        'name': name or f'{run["method"]} of {run["model"]}', 'model': run['model'], 'label_map': relative(labels),
        'dataset': dataset,
        'attributions': {
            'attribution_method': run['method'],
            'attribution_strategy': 'true_label' if run['target'] == 'label' else 'predicted_label',
            'sources': [relative(attribution)],
        },
        'analyses': [{'analysis_method': 'Spectral', 'sources': list(map(relative, analyses))}],
    }
    with atomic_write(out) as temporary:
        temporary.write_text(yaml.safe_dump({'project': content}, sort_keys=False), encoding='utf-8')


def read_run(attribution, analyses):
    '''The run of a file of attributions, and the names of its images. Raise if an analysis is of another run.'''
    import h5py

    try:
        run = attribute_of(attribution, 'run')
        runs = [attribute_of(path, 'run').get('attribution') for path in analyses]
        with h5py.File(attribution, 'r') as file:
            names = file['name'].asstr()[:].tolist()
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{attribution} and {", ".join(map(str, analyses))} are not files of attributions and of their'
                         f' analyses: {error}') from error
    for path, own in zip(analyses, runs):
        if own != run:
            other = '' if own is None else ', but of another run'
            raise ValueError(f'{path} is not an analysis of {attribution}{other}')
    return run, names


def own_labels(path):
    '''The labels in a file of attributions.'''
    import h5py

    with h5py.File(path, 'r') as file:
        return file['label'][:].tolist()


def require_data_set(path, count):
    '''Raise if an HDF5 file is not a data set of so many images.'''
    import h5py

    try:
        with h5py.File(path, 'r') as file:
            shapes = file['data'].shape, file['label'].shape
    except (OSError, KeyError, AttributeError) as error:
        raise ValueError(f'{path} is not a data set of ViRelAy: {error}') from error
    if len(shapes[0]) != 4 or shapes[0][:1] != (count,) or shapes[1] != (count,):
        raise ValueError(f'{path} has data and labels of shape {shapes}, but there are {count} attributions')


def image_directory(folder, names, labels, entries, attribution, out):
    '''The data set of a project with the images of a folder, of which ViRelAy reads those that are in a list beside the
    project.'''
    import h5py

    advice = f'use {beside(attribution, "_data.h5")}, which was written with the attributions'
    folders = {entry['index']: entry['word_net_id'] for entry in entries}
    if [name.split('/')[:-1] for name in names] != [[folders.get(label)] for label in labels]:
        raise ValueError(
            f'the images in {folder} do not lie in folders that are named by the WordNet IDs of their classes in the'
            f' label map: {advice}'
        )
    with h5py.File(beside(attribution, '_data.h5'), 'r') as file:
        for name, seen in zip(names, file['data']):
            with Image.open(folder / name) as image:  # as ViRelAy does
                shown = np.asarray(image.convert('RGB'))
            # what the model sees is rounded twice
            if shown.shape != seen.shape or np.abs(shown.astype(int) - seen).max() > 2:
                raise ValueError(
                    f'{folder / name} is not what the model sees, so that maps would not lie over it: {advice}'
                )
    height, width, _ = seen.shape
    listing = out.with_name(f'{out.stem}_images')  # ViRelAy reads the paths from a file of this name and _paths.txt
    paths = [os.path.relpath((folder / name).resolve(), out.resolve().parent) for name in names]
    with atomic_write(f'{listing}_paths.txt') as temporary:
        temporary.write_text('\n'.join(paths), encoding='utf-8')
    return {
        'name': folder.name, 'type': 'image_directory', 'path': listing.name,
        'label_index_regex': None, 'label_word_net_id_regex': r'(?:.*/)?([^/]+)/[^/]+$',
        'input_width': width, 'input_height': height, 'down_sampling_method': 'none', 'up_sampling_method': 'none',
    }
