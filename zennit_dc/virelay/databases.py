'''The files of attributions, in the layout of ViRelAy's databases.'''
import json

import numpy as np

from ..data.parts import atomic_write, differences


def merge(parts, images, out, labels):
    '''Write the files for ViRelAy from the parts, and remove these.'''
    missing = parts.missing()
    if missing:
        raise OSError(
            f'{len(missing)} of {parts.count} parts are not in {parts.folder}: all processes need the same folder'
        )
    skipped, prediction, filled = skipped_of(parts, images), {}, {}
    for number in range(parts.count):
        index, = parts.load(number, 'index')
        if len(index):
            filled[number] = index
            prediction.update(zip(index.tolist(), parts.load(number, 'prediction')[0].argmax(1).tolist()))
    if not filled:
        raise ValueError(f'none of the {len(images)} images can be read: {skipped[0][1]}')
    indices = sorted(prediction)
    label = [prediction[index] if images.labels[index] is None else images.labels[index] for index in indices]
    rows = {number: np.searchsorted(indices, index) for number, index in filled.items()}
    with atomic_write(beside(out, '_labels.json'), folder=parts.folder) as temporary:
        temporary.write_text(json.dumps(labels, indent=1, ensure_ascii=False), encoding='utf-8')
    write_database(beside(out, '_data.h5'), parts, rows, {'image': 'data'}, label)
    write_database(
        out, parts, rows, {key: key for key in ('attribution', 'prediction', 'target')}, label,
        name=[images.names[index] for index in indices], run=parts.run, skipped=skipped
    )
    parts.remove()


def skipped_of(parts, images):
    '''The images of parts that could not be read, in their order, and why.'''
    loaded = (zip(*parts.load(number, 'skipped', 'reason')) for number in parts.numbers)
    return [(images.names[place], str(reason)) for place, reason in sorted(entry for part in loaded for entry in part)]


def write_database(path, parts, rows, keys, label, name=None, **attributes):
    '''Write an HDF5 file with the arrays of all parts that have images, each into its rows.'''
    import h5py

    try:
        arrays = parts.load(next(iter(rows)), *keys)
        size = sum(array.nbytes // len(array) for array in arrays) * len(label) + 2 ** 16
        with atomic_write(path, size, parts.folder) as temporary, h5py.File(temporary, 'w') as file:
            for key, array in zip(keys.values(), arrays):
                file.create_dataset(key, (len(label), *array.shape[1:]), array.dtype)
            for number, places in rows.items():
                for key, array in zip(keys.values(), parts.load(number, *keys)):
                    for own, there in slices_of(places):
                        file[key][there] = array[own]
            file['label'] = np.array(label, np.int64)
            if name is not None:
                file.create_dataset('name', data=name, dtype=h5py.string_dtype())
            for key, value in attributes.items():
                file.attrs[key] = json.dumps(value)
    except (OSError, RuntimeError) as error:
        raise OSError(f'{path} cannot be written: {error}') from error


def slices_of(places):
    '''Slices of increasing places that follow one another without a gap, each with the slice that these places are.'''
    ends = [*np.flatnonzero(np.diff(places) > 1) + 1, len(places)]
    for start, end in zip([0, *ends], ends):
        yield slice(start, end), slice(places[start], places[start] + end - start)


def beside(out, ending):
    '''The path of another file of a run.'''
    return out.with_name(out.name.removesuffix('.h5') + ending)


def attribute_of(path, key):
    '''An attribute of a database.'''
    import h5py

    with h5py.File(path, 'r') as file:
        return json.loads(file.attrs[key])


def skipped_images(out):
    '''The images that a finished run could not read.'''
    return [tuple(entry) for entry in attribute_of(out, 'skipped')]


def require_same_run(out, run, kind='a file of attributions'):
    '''Raise if a file is not of this run.'''
    try:
        different = differences(attribute_of(out, 'run'), json.loads(json.dumps(run)))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f'{out} exists, but is not {kind}: choose another --out') from error
    if different:
        raise ValueError(
            f'{out} exists from another run, which differs in {", ".join(different)}: delete it, or choose another'
            ' --out'
        )
